/*
 * Theory of operation
 *
 * A fault is answered with 16 KiB, and to release them splits the huge page that they lie in
 * (copying all of it first would hold its writers for 300 us and more, performance.md); shared
 * memory loses its huge mappings when it is protected. khugepaged puts some together, minutes
 * later, and only in memory that it is to look at.
 *
 * So a byte for each 2 MiB notes what was huge before. After the release each of those is looked at
 * again (collapse_look.h): still huge, or all there in small pages, which are collapsed; or with
 * holes in it, for the guest has discarded part of it since, which is left as the guest wants it.
 *
 * A collapse copies 2 MiB while the process's mmap_lock is held for writing and the page is away:
 * who writes there waits, and so does any thread of the VMM that takes a page fault (collapse.h,
 * also for how many are done in one call). So after each call we sleep for as long as it took, and
 * after a few that took very long give up: khugepaged may do it when the host has less to do. The
 * thread keeps normal priority: with that of the compressors they would preempt it in the midst,
 * with the lock held.
 *
 * If a call fails, its units are done one by one, since it does not say for which of them it did.
 * What is pinned for the moment (EAGAIN; I/O in flight, say) is tried again at the end, twice.
 *
 * A call cannot be broken off. Who ends the thread waits for it for two seconds, and if it hangs
 * then leaves it alone with all that it may still use: but for atomics nothing of that is looked at
 * again.
 */
#include "snapshot/memory/huge.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/image/format.h"
#include "common/log.h"
#include "common/target/collapse.h"
#include "common/target/collapse_look.h"
#include "common/testhook.h"
#include "common/thread.h"

#define ROUNDS 3
#define ROUND_PAUSE_NS 50000000u
#define REST_MIN_NS 200000u
#define SLOW_CALL_NS 200000000u
#define SLOW_CALLS 3u /* then it is given up */
#define NOTE_TICK_UNITS 1024u
#define STOP_LIMIT_S 2

enum unit_state {
    UNIT_SMALL, /* was not huge */
    UNIT_HUGE,  /* was huge; whether it is, is not known */
    UNIT_AGAIN, /* is huge again */
    UNIT_SPLIT, /* was huge; is not, and will not be by us */
};

/* The whole 2 MiB units of a region. */
struct huge_range {
    const struct region *region;
    uint64_t hva, n_units;
    uint8_t *states;
};

struct huge {
    const struct target *target;
    struct huge_range *ranges;
    uint32_t n_ranges;
    uint8_t *states;
    uint64_t n_before;
    struct collapse_run run;
    unsigned n_slow;
    uint64_t n_holes, wall_ns;
    pthread_t thread;
    bool started;
    bool left_alone; /* it hangs in a call: it and this outlive us */
    atomic_bool stop;
    atomic_uint_fast64_t n_settled, n_again;
    int done_event, stop_event;
};

/* ---- before ---- */

static bool may_be_huge(const struct region *r)
{
    return r->page_bytes == IMAGE_PAGE_BYTES && r->kind != REGION_PRIVATE_FILE;
}

static void add_range(struct huge *h, const struct region *r)
{
    uint64_t first = (r->hva + COLLAPSE_BYTES - 1) / COLLAPSE_BYTES * COLLAPSE_BYTES;
    uint64_t end = (r->hva + r->bytes) / COLLAPSE_BYTES * COLLAPSE_BYTES;
    if (may_be_huge(r) && end > first)
        h->ranges[h->n_ranges++] = (struct huge_range){
            .region = r, .hva = first, .n_units = (end - first) / COLLAPSE_BYTES};
}

static int add_ranges(struct huge *h, const struct region *regions, uint32_t n_regions)
{
    uint64_t n_units = 0;
    h->ranges = calloc(n_regions ? n_regions : 1, sizeof(*h->ranges));
    for (uint32_t i = 0; h->ranges && i < n_regions; i++)
        add_range(h, &regions[i]);
    for (uint32_t i = 0; i < h->n_ranges; i++)
        n_units += h->ranges[i].n_units;
    h->states = calloc(n_units ? n_units : 1, 1);
    if (!h->ranges || !h->states)
        return -ENOMEM;
    uint8_t *states = h->states;
    for (uint32_t i = 0; i < h->n_ranges; states += h->ranges[i++].n_units)
        h->ranges[i].states = states;
    return 0;
}

/* Half of it would look like all of it. */
static void note_none(struct huge *h)
{
    h->n_before = 0;
    for (uint32_t i = 0; i < h->n_ranges; i++)
        memset(h->ranges[i].states, UNIT_SMALL, h->ranges[i].n_units);
}

static int note_all(struct huge *h, int (*tick)(void *), void *opaque)
{
    struct collapse_look look;
    uint64_t n_looked = 0;
    int ret = collapse_look_open(&look, h->target);
    for (uint32_t i = 0; i < h->n_ranges; i++)
        for (uint64_t unit = 0; !ret && unit < h->ranges[i].n_units; unit++) {
            bool is_huge;
            ret = collapse_look_huge(&look, h->ranges[i].hva + unit * COLLAPSE_BYTES, &is_huge);
            if (!ret && is_huge) {
                h->ranges[i].states[unit] = UNIT_HUGE;
                h->n_before++;
            }
            if (!ret && tick && ++n_looked % NOTE_TICK_UNITS == 0 && tick(opaque))
                ret = -EINTR;
        }
    collapse_look_close(&look);
    if (ret)
        note_none(h);
    return ret;
}

int huge_note(struct huge **out, const struct target *t, const struct region *regions,
              uint32_t n_regions, int (*tick)(void *), void *opaque)
{
    struct huge *h = calloc(1, sizeof(*h));
    *out = h;
    if (!h)
        return -ENOMEM;
    h->target = t;
    h->done_event = h->stop_event = -1;
    if (add_ranges(h, regions, n_regions)) {
        huge_free(h);
        *out = NULL;
        return -ENOMEM;
    }
    uint64_t from = clock_monotonic_ns();
    int ret = note_all(h, tick, opaque);
    if (ret == -EINTR)
        return ret;
    if (ret)
        log_info("huge pages: cannot tell which there are (%s): those that are split stay so",
                 strerror(-ret));
    else
        log_debug("huge pages: %.1f MiB, looked up in %.1f ms",
                  (double)huge_bytes_before(h) / 1048576,
                  (double)(clock_monotonic_ns() - from) / 1e6);
    return 0;
}

/* ---- after ---- */

/* Ends at once when the thread is to stop. */
static void rest(const struct huge *h, uint64_t ns)
{
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    struct pollfd stop = {.fd = h->stop_event, .events = POLLIN};
    ppoll(&stop, 1, &t, NULL);
}

static void settle(struct huge *h, uint8_t *unit, enum unit_state state)
{
    *unit = (uint8_t)state;
    atomic_fetch_add(&h->n_settled, 1);
    atomic_fetch_add(&h->n_again, state == UNIT_AGAIN);
}

/* Looks at a unit that was huge and settles it if there is nothing to be done. True: it is in
 * pieces, or (without PAGEMAP_SCAN) may be. *gone: the process is. */
static bool is_in_pieces(struct huge *h, struct collapse_look *look, const struct huge_range *range,
                         uint64_t unit, bool *gone)
{
    enum collapse_state now;
    *gone = collapse_look_at(look, range->region, range->hva + unit * COLLAPSE_BYTES, &now) != 0;
    if (*gone)
        return false;
    if (now == COLLAPSE_WHOLE || (now == COLLAPSE_HUGE && look->kpageflags_fd >= 0))
        return true;
    h->n_holes += now == COLLAPSE_HOLES;
    settle(h, &range->states[unit], now == COLLAPSE_HUGE ? UNIT_AGAIN : UNIT_SPLIT);
    return false;
}

/* The units in pieces from `unit`, one of them, on: at most as many as a call takes. */
static unsigned count_pieces(struct huge *h, struct collapse_look *look,
                             const struct huge_range *range, uint64_t unit)
{
    unsigned n = 1, most = collapse_batch(&h->run);
    bool gone;
    while (n < most && unit + n < range->n_units && range->states[unit + n] == UNIT_HUGE &&
           is_in_pieces(h, look, range, unit + n, &gone))
        n++;
    return n;
}

/* After a call that took that long. False: such calls do the VMM more harm than small pages do. */
static bool rest_after(struct huge *h, uint64_t took_ns)
{
    h->n_slow += took_ns > SLOW_CALL_NS;
    if (h->n_slow == SLOW_CALLS) {
        log_info("huge pages: %u calls took more than %u ms each: the rest is left to khugepaged",
                 SLOW_CALLS, SLOW_CALL_NS / 1000000u);
        return false;
    }
    rest(h, took_ns < REST_MIN_NS ? REST_MIN_NS : took_ns);
    return true;
}

/* One call for `n` units. False: no use in going on. */
static bool call(struct huge *h, const struct huge_range *range, uint64_t unit, unsigned n,
                 enum collapse_result *result)
{
    TESTHOOK_POINT("huge-collapsing");
    if (atomic_load(&h->stop))
        return false;
    uint64_t from = clock_monotonic_ns();
    bool go_on = collapse_next(&h->run, h->target, range->hva + unit * COLLAPSE_BYTES, n, result);
    uint64_t took = clock_monotonic_ns() - from;
    for (unsigned i = 0; i < n && *result == COLLAPSE_DONE; i++)
        settle(h, &range->states[unit + i], UNIT_AGAIN);
    return rest_after(h, took) && go_on;
}

/* Puts `n` units together. False: no use in going on. */
static bool collapse(struct huge *h, const struct huge_range *range, uint64_t unit, unsigned n)
{
    enum collapse_result result;
    bool go_on = call(h, range, unit, n, &result);
    if (!go_on || result == COLLAPSE_DONE)
        return go_on;
    if (n == 1 && result != COLLAPSE_AGAIN)
        settle(h, &range->states[unit], UNIT_SPLIT);
    for (unsigned i = 0; n > 1 && i < n && go_on; i++)
        go_on = collapse(h, range, unit + i, 1);
    return go_on;
}

/* Looks after a unit that was huge, and what follows it. False: no use in going on. */
static bool look_after(struct huge *h, struct collapse_look *look, const struct huge_range *range,
                       uint64_t unit)
{
    bool gone;
    if (!is_in_pieces(h, look, range, unit, &gone))
        return !gone;
    if (!collapse_is_possible() || TESTHOOK_BROKEN("huge-left-split")) {
        settle(h, &range->states[unit], UNIT_SPLIT);
        return true;
    }
    return collapse(h, range, unit, count_pieces(h, look, range, unit));
}

/* Looks after what is not settled. *left: some of it is to be tried again. False as above. */
static bool make_round(struct huge *h, struct collapse_look *look, bool *left)
{
    *left = false;
    collapse_look_forget(look);
    for (uint32_t i = 0; i < h->n_ranges; i++) {
        const struct huge_range *range = &h->ranges[i];
        for (uint64_t unit = 0; unit < range->n_units; unit++) {
            if (range->states[unit] != UNIT_HUGE)
                continue;
            if (atomic_load(&h->stop) || !look_after(h, look, range, unit))
                return false;
            *left |= range->states[unit] == UNIT_HUGE;
        }
    }
    return true;
}

static void *huge_thread(void *opaque)
{
    struct huge *h = opaque;
    struct collapse_look look;
    uint64_t from = clock_monotonic_ns();
    prctl(PR_SET_NAME, "vmsnap-huge");
    if (collapse_look_open(&look, h->target) == 0) {
        bool left = true;
        for (int round = 0; round < ROUNDS && make_round(h, &look, &left) && left; round++)
            rest(h, ROUND_PAUSE_NS);
        collapse_look_close(&look);
    }
    h->wall_ns = clock_monotonic_ns() - from;
    eventfd_write(h->done_event, 1);
    return NULL;
}

int huge_start(struct huge *h)
{
    if (h->n_before == 0 || h->started)
        return 0;
    if (!collapse_is_possible())
        log_info("huge pages: this kernel cannot put them together (needs Linux 6.1)");
    h->done_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    h->stop_event = h->done_event < 0 ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int ret = h->stop_event < 0 ? -errno : thread_start(&h->thread, huge_thread, h);
    h->started = ret == 0;
    return ret;
}

int huge_event_fd(const struct huge *h)
{
    return h->started ? h->done_event : -1;
}

void huge_expect_discards(struct huge *h)
{
    h->run.keep_few = true;
}

void huge_stop(struct huge *h)
{
    if (!h || !h->started)
        return;
    atomic_store(&h->stop, true);
    eventfd_write(h->stop_event, 1);
    h->started = false;
    h->left_alone = !thread_join_within(h->thread, STOP_LIMIT_S);
    if (h->left_alone) {
        log_info("huge pages: a call hangs in the kernel; its thread ends with this process");
        return;
    }
    log_info(
        "huge pages: %.1f MiB before, %.1f MiB after; %llu calls in %.1f ms (%.1f ms in them, the "
        "longest %.1f ms), %llu failed, %llu of the pages have holes now",
        (double)huge_bytes_before(h) / 1048576, (double)huge_bytes_after(h) / 1048576,
        (unsigned long long)h->run.n_calls, (double)h->wall_ns / 1e6, (double)h->run.busy_ns / 1e6,
        (double)h->run.longest_ns / 1e6, (unsigned long long)h->run.n_failed,
        (unsigned long long)h->n_holes);
}

uint64_t huge_bytes_before(const struct huge *h)
{
    return h->n_before * COLLAPSE_BYTES;
}

uint64_t huge_bytes_settled(const struct huge *h)
{
    return atomic_load(&((struct huge *)h)->n_settled) * COLLAPSE_BYTES;
}

uint64_t huge_bytes_after(const struct huge *h)
{
    return atomic_load(&((struct huge *)h)->n_again) * COLLAPSE_BYTES;
}

void huge_free(struct huge *h)
{
    if (!h)
        return;
    huge_stop(h);
    if (h->left_alone)
        return;
    if (h->done_event >= 0)
        close(h->done_event);
    if (h->stop_event >= 0)
        close(h->stop_event);
    free(h->states);
    free(h->ranges);
    free(h);
}
