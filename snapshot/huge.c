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
 * also for how many are done in one call). So after each call we sleep for as long as it took. The
 * thread keeps normal priority: with that of the compressors they would preempt it in the midst,
 * with the lock held.
 *
 * If a call fails, its units are done one by one, since it does not say for which of them it did.
 * What is pinned for the moment (EAGAIN; I/O in flight, say) is tried again at the end, twice.
 */
#include "snapshot/huge.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/collapse.h"
#include "common/collapse_look.h"
#include "common/image_format.h"
#include "common/log.h"
#include "common/testhook.h"
#include "common/thread.h"

#define ROUNDS 3
#define ROUND_PAUSE_NS 50000000u
#define REST_MIN_NS 200000u
#define REST_MAX_NS 5000000u

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
    uint64_t n_before, n_after;
    struct collapse_run run;
    uint64_t n_holes, wall_ns;
    pthread_t thread;
    bool started;
    atomic_bool stop;
    atomic_uint_fast64_t n_settled;
    int done_event;
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

static int note_all(struct huge *h)
{
    struct collapse_look look;
    int ret = collapse_look_open(&look, h->target);
    for (uint32_t i = 0; i < h->n_ranges; i++)
        for (uint64_t unit = 0; !ret && unit < h->ranges[i].n_units; unit++) {
            bool is_huge;
            ret = collapse_look_huge(&look, h->ranges[i].hva + unit * COLLAPSE_BYTES, &is_huge);
            if (!ret && is_huge) {
                h->ranges[i].states[unit] = UNIT_HUGE;
                h->n_before++;
            }
        }
    collapse_look_close(&look);
    return ret;
}

int huge_note(struct huge **out, const struct target *t, const struct region *regions,
              uint32_t n_regions)
{
    struct huge *h = calloc(1, sizeof(*h));
    *out = h;
    if (!h)
        return -ENOMEM;
    h->target = t;
    h->done_event = -1;
    if (add_ranges(h, regions, n_regions)) {
        huge_free(h);
        *out = NULL;
        return -ENOMEM;
    }
    uint64_t from = clock_monotonic_ns();
    int ret = note_all(h);
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

static void rest(const struct huge *h, uint64_t ns)
{
    struct timespec t = {.tv_nsec = (long)ns};
    if (!atomic_load(&((struct huge *)h)->stop))
        nanosleep(&t, NULL);
}

static void settle(struct huge *h, uint8_t *unit, enum unit_state state)
{
    *unit = (uint8_t)state;
    atomic_fetch_add(&h->n_settled, 1);
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
    rest(h, took < REST_MIN_NS ? REST_MIN_NS : took > REST_MAX_NS ? REST_MAX_NS : took);
    return go_on;
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

static void count_after(struct huge *h)
{
    for (uint32_t i = 0; i < h->n_ranges; i++)
        for (uint64_t unit = 0; unit < h->ranges[i].n_units; unit++)
            h->n_after += h->ranges[i].states[unit] == UNIT_AGAIN;
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
    int ret = h->done_event < 0 ? -errno : thread_start(&h->thread, huge_thread, h);
    h->started = ret == 0;
    return ret;
}

int huge_event_fd(const struct huge *h)
{
    return h->started ? h->done_event : -1;
}

void huge_stop(struct huge *h)
{
    if (!h || !h->started)
        return;
    atomic_store(&h->stop, true);
    pthread_join(h->thread, NULL);
    h->started = false;
    count_after(h);
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
    return h->n_after * COLLAPSE_BYTES;
}

void huge_free(struct huge *h)
{
    if (!h)
        return;
    huge_stop(h);
    if (h->done_event >= 0)
        close(h->done_event);
    free(h->states);
    free(h->ranges);
    free(h);
}
