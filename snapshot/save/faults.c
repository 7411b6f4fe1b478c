/*
 * Theory of operation
 *
 * Two phases. BEFORE the instant memory is registered, and perhaps protected by live passes
 * (live.h): a write is let through and its cluster marked, a MISSING event (private anonymous
 * memory is registered for them, see arm.c) is answered with a zero page. At the instant the main
 * thread asks for the change; this thread makes it when a read of the userfaultfd has found
 * nothing, so that no event of before is taken for one of after. From then on a fault means that
 * the guest is about to change its cluster: it is claimed, copied, saved, and only then
 * unprotected.
 *
 * A MISSING event after the instant says that the page was absent at the instant, which is zero.
 * Its cluster is saved like any other (absent pages come out of region_read() as zeros without
 * being touched; touching one would wait for this very thread), then a zero page is put in.
 *
 * The wake-up of a sleeping thread is most of the cost of a fault, so after each fault the thread
 * goes on reading for a while before it sleeps in poll: longer while faults keep coming within that
 * time, hardly at all when they do not, and not at all where buffers are short. Copies are handed
 * to the compressors only after the guest's thread goes on, since waking a compressor is a system
 * call too.
 *
 * While nothing else waits it also saves the neighbours of the last fault. A fault among them or
 * right behind is a sequential writer: it is outrun, by twice as much each time. Else they are
 * released only after the next fault: an unprotect makes KVM call back every vCPU that is in the
 * guest, the one too that has just returned there, and takes from it what it had mapped. After a
 * fault its vCPU is still on its way.
 *
 * The thread runs as SCHED_RR where that is allowed: on a host whose CPUs are all busy (with our
 * own compressors, to begin with) that cut the 99th percentile of a fault from 2-4 ms to 15-75 us.
 * So it must never spin until a thread of lower priority has done something: it sleeps in poll or
 * futex instead.
 */
#include "snapshot/save/faults.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/futex.h"
#include "common/log.h"
#include "common/streams.h"
#include "common/testhook.h"
#include "common/thread.h"
#include "common/uffd.h"
#include "snapshot/save/copier.h"
#include "snapshot/save/events.h"

#define FAULT_PRIORITY 1 /* the lowest real-time one */
/* How long to keep reading after a fault: doubled while faults come within the longest of these,
 * halved when they do not. */
#define BUSY_READ_MIN_NS 12500u
#define BUSY_READ_MAX_NS 100000u
#define AROUND_CLUSTERS 4u /* save this much round a fault: 64 KiB */
#define AHEAD_MAX_CLUSTERS 128u
#define LOOSEN_MAX_CLUSTERS 64u /* before the instant */
#define STOP_LIMIT_S 2

struct span {
    const struct cluster_range *range;
    uint64_t from, to;
};

struct faults {
    struct capture *capture;
    struct shard *shard;
    pthread_t thread;
    int control; /* eventfd: look at the requests */
    atomic_bool stop;
    atomic_uint freeze_asked; /* 1: asked */
    atomic_uint frozen;       /* futex word; 1: the phase has changed */
    bool unreadable;          /* a read has failed */
    uint64_t emptied_ns; /* the last read that left nothing behind: what is read next is younger */
    uint64_t busy_read_ns;
    struct histogram latency;
    struct events events;
    struct copier copier;
    struct streams written; /* before the instant, */
    struct streams saved;   /* and after it */
    struct span neighbours; /* of the last fault: saved, but not released. None: from == to */
};

/* Unprotects; true unless the snapshot has failed. */
static bool unprotect(struct faults *f, uint64_t hva, uint64_t bytes)
{
    for (;;) {
        int ret = uffd_unprotect(f->shard->uffd, hva, bytes);
        if (ret == -EAGAIN)
            ret = events_drain(&f->events);
        else if (ret == 0)
            return true;
        if (capture_failed(f->capture))
            return false;
        if (ret) {
            capture_fail(f->capture, CAPTURE_PROTECT, ret, hva);
            return false;
        }
    }
}

/* Puts zero pages where none is, and wakes. */
static void fill_hole(struct faults *f, uint64_t hva, uint64_t bytes)
{
    uint64_t at = 0;
    while (at < bytes && !capture_failed(f->capture)) {
        uint64_t done = 0;
        int ret = uffd_zeropage(f->shard->uffd, hva + at, bytes - at, true, &done);
        at += done;
        if (ret == -EEXIST) {
            at += IMAGE_PAGE_BYTES;
            ret = 0;
        } else if (ret == -EAGAIN) {
            ret = events_drain(&f->events);
        }
        if (ret) {
            capture_fail(f->capture, CAPTURE_PROTECT, ret, hva + at);
            return;
        }
    }
    uffd_wake(f->shard->uffd, hva, bytes);
}

static void note_hot(struct capture *c, uint64_t cluster, unsigned page)
{
    uint64_t i = atomic_fetch_add_explicit(&c->n_hot, 1, memory_order_relaxed);
    if (i < c->hot_room)
        c->hot[i] = (struct hot_entry){.cluster_low = (uint32_t)cluster,
                                       .cluster_high = (uint8_t)(cluster >> 32),
                                       .written = (uint8_t)(1u << page)};
}

static bool release(struct faults *f, const struct cluster_range *range, uint64_t from, uint64_t to)
{
    if (!unprotect(f, cluster_hva(range, from), cluster_span_bytes(range, from, to)))
        return false;
    for (uint64_t cluster = from; cluster < to; cluster++)
        cluster_release(&f->capture->map, cluster);
    return true;
}

static void wait_for_pass(const struct capture *c, uint64_t cluster)
{
    uint64_t deadline = clock_monotonic_ns() + 2000000u;
    while (cluster_state(&c->map, cluster) == CLUSTER_DIRTY && clock_monotonic_ns() < deadline)
        usleep(20);
    usleep(200); /* it protects after that */
}

/* The end of what is tracked from `from` on, at most `to`: what is left to the pause is not
 * protected, and an unprotect that reaches into it would split a huge page. */
static uint64_t tracked_until(const struct capture *c, const struct cluster_range *range,
                              uint64_t from, uint64_t to)
{
    uint64_t end = range->first + range->n_clusters;
    while (from < to && from < end && cluster_state(&c->map, from) < CLUSTER_LEFT)
        from++;
    return from;
}

/* A write before the instant, to what a live pass has protected, or the first touch of a hole. What
 * is let loose is marked only then: live.h says why. */
static void serve_before(struct faults *f, const struct cluster_range *range, uint64_t hva,
                         bool protection)
{
    struct capture *c = f->capture;
    uint64_t from = cluster_at(range, hva);
    uint64_t to = from + 1;
    if (protection && range->unit_clusters == 1) {
        struct stream *stream = streams_find(&f->written, from);
        to = stream->next = tracked_until(c, range, to, from + stream->ahead);
    }
    cluster_range_whole_units(range, &from, &to);
    if (TESTHOOK_BROKEN("dirty-before-unprotect") && protection) {
        /* The mistake: a pass that comes by in between is undone. */
        cluster_dirty(&c->map, from);
        wait_for_pass(c, from);
        unprotect(f, cluster_hva(range, from), cluster_span_bytes(range, from, to));
        return;
    }
    if (protection)
        unprotect(f, cluster_hva(range, from), cluster_span_bytes(range, from, to));
    else
        fill_hole(f, hva, IMAGE_PAGE_BYTES);
    for (uint64_t cluster = from; cluster < to; cluster++)
        cluster_dirty(&c->map, cluster);
    atomic_fetch_add(&c->live_faults, protection);
}

static void serve_fault(struct faults *f, const struct uffd_msg *m)
{
    struct capture *c = f->capture;
    uint64_t hva = m->arg.pagefault.address & ~(uint64_t)(IMAGE_PAGE_BYTES - 1);
    bool protection = m->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP;
    const struct cluster_range *range = cluster_map_find(&c->map, hva);
    if (!range) { /* not in what is saved: a block longer than its used length */
        if (protection)
            unprotect(f, hva, IMAGE_PAGE_BYTES);
        else
            fill_hole(f, hva, IMAGE_PAGE_BYTES);
        return;
    }
    if (f->events.phase == PHASE_BEFORE) {
        serve_before(f, range, hva, protection);
        return;
    }
    uint64_t cluster = cluster_at(range, hva);
    uint64_t from = cluster, to = cluster + 1;
    cluster_range_whole_units(range, &from, &to);
    if (cluster_state(&c->map, cluster) != CLUSTER_RELEASED) /* precopied ones too */
        note_hot(c, cluster, (unsigned)(hva - cluster_hva(range, cluster)) / IMAGE_PAGE_BYTES);
    if (!copier_save(&f->copier, range, from, to, COPIER_WAIT, NULL) ||
        !release(f, range, from, to))
        return;
    if (!protection)
        fill_hole(f, hva, IMAGE_PAGE_BYTES);
    atomic_fetch_add(&c->write_faults, 1);
}

/* The first cluster of [from, to) that is not released, or `to`. */
static uint64_t first_held(const struct capture *c, uint64_t from, uint64_t to)
{
    while (from < to && cluster_state(&c->map, from) == CLUSTER_RELEASED)
        from++;
    return from;
}

static void release_neighbours(struct faults *f)
{
    struct span *s = &f->neighbours;
    uint64_t from = first_held(f->capture, s->from, s->to);
    if (from < s->to)
        release(f, s->range, from, s->to);
    s->from = s->to;
}

static bool fault_waits(const struct faults *f)
{
    struct pollfd p = {.fd = f->shard->uffd, .events = POLLIN};
    return poll(&p, 1, 0) != 0;
}

/* Saves AROUND_CLUSTERS, as far as buffers are plentiful and no fault waits, and releases them now
 * or after the next fault. False: no more of this. */
static bool save_block(struct faults *f, const struct cluster_range *range, uint64_t from, bool now)
{
    uint64_t to = from + AROUND_CLUSTERS, end = range->first + range->n_clusters, at = from;
    if (to > end)
        to = end;
    while (at < to && !fault_waits(f) &&
           copier_save(&f->copier, range, at, at + 1, COPIER_TRY, NULL))
        at++;
    if (!now || at < to) {
        f->neighbours = (struct span){range, from, at};
        return at == to;
    }
    from = first_held(f->capture, from, to);
    return from == to || release(f, range, from, to);
}

/* Saves what lies round a fault, and ahead of it if it belongs to a stream, until another fault
 * waits. */
static void save_around(struct faults *f, uint64_t hva)
{
    const struct cluster_range *range = cluster_map_find(&f->capture->map, hva);
    if (!range || range->unit_clusters > 1 || f->events.phase == PHASE_BEFORE)
        return;
    uint64_t cluster = cluster_at(range, hva), end = range->first + range->n_clusters;
    struct stream *stream = streams_find(&f->saved, cluster);
    uint64_t at = cluster - (cluster - range->first) % AROUND_CLUSTERS;
    if (at + stream->ahead < end)
        end = at + stream->ahead;
    bool goes_on = stream->ahead > AROUND_CLUSTERS;
    while (at < end && save_block(f, range, at, goes_on))
        at += AROUND_CLUSTERS;
    stream->next = at;
}

/* Faults that were read together all wait: they are served before anything else is done. */
static void serve_batch(struct faults *f, const struct uffd_msg *messages, int n)
{
    struct capture *c = f->capture;
    uint64_t last = 0;
    for (int i = 0; i < n && !capture_failed(c); i++) {
        if (messages[i].event != UFFD_EVENT_PAGEFAULT)
            continue;
        last = messages[i].arg.pagefault.address;
        serve_fault(f, &messages[i]);
        if (f->events.phase == PHASE_AFTER)
            histogram_add(&f->latency, clock_monotonic_ns() - f->emptied_ns);
    }
    if (last && !capture_failed(c)) {
        release_neighbours(f);
        save_around(f, last);
    }
    copier_hand_on(&f->copier);
    atomic_store(&f->shard->held_since_ns,
                 0); /* only now: new faults wait for the neighbours' copies */
}

/* Nothing waits in the userfaultfd: the moment to change phase, if that was asked. */
static void change_phase(struct faults *f)
{
    if (f->events.phase == PHASE_BEFORE && atomic_load(&f->freeze_asked)) {
        f->events.phase = PHASE_AFTER;
        atomic_store(&f->frozen, 1);
        futex_wake(&f->frozen, 1);
    }
}

static void sleep_until_event(struct faults *f)
{
    struct pollfd fds[2] = {{.fd = f->shard->uffd, .events = POLLIN},
                            {.fd = f->control, .events = POLLIN}};
    if (f->unreadable)
        fds[0].fd = -1;
    poll(fds, 2, -1);
    if (fds[1].revents) {
        uint64_t rings;
        if (read(f->control, &rings, sizeof(rings)) < 0)
            return;
    }
}

/* How long to keep reading, when a fault has come this long after the last one was served. Not at
 * all where that takes the CPU from the compressors for which the guest waits. */
static uint64_t busy_reading(struct faults *f, uint64_t gap_ns)
{
    if (pool_is_short(f->capture->pool))
        return 0;
    if (gap_ns < BUSY_READ_MAX_NS && f->busy_read_ns < BUSY_READ_MAX_NS)
        f->busy_read_ns *= 2;
    else if (gap_ns >= BUSY_READ_MAX_NS && f->busy_read_ns > BUSY_READ_MIN_NS)
        f->busy_read_ns /= 2;
    return f->busy_read_ns;
}

static void *fault_thread(void *opaque)
{
    struct faults *f = opaque;
    struct capture *c = f->capture;
    prctl(PR_SET_NAME, "vmsnap-fault");
    int ret = thread_go_first(FAULT_PRIORITY);
    if (ret)
        log_info("the fault thread runs at normal priority (%s): on a busy host writes of the "
                 "guest wait longer",
                 strerror(-ret));
    struct uffd_msg messages[EVENTS_BATCH];
    uint64_t busy_until = 0, last_served = 0, began = clock_monotonic_ns();
    while (!atomic_load(&f->stop)) {
        /* After a failure too, though nobody is served any more: protection is about to be
         * dropped, but whoever discards memory waits until that is read. */
        int n = f->unreadable ? 0 : events_read(&f->events, messages);
        uint64_t now = clock_monotonic_ns();
        if (n > 0) {
            atomic_store(&f->shard->held_since_ns, f->emptied_ns);
            serve_batch(f, messages, n);
            if (n < EVENTS_BATCH)
                f->emptied_ns = now;
            uint64_t served = clock_monotonic_ns();
            busy_until = served + busy_reading(f, now - last_served);
            last_served = served;
            stage_add(&c->stages.serving, served - now, 0);
            continue;
        }
        if (n < 0) {
            f->unreadable = true;
            capture_fail(c, CAPTURE_PROTECT, n, 0);
        }
        f->emptied_ns = now;
        change_phase(f);
        if (now >= busy_until || capture_failed(c)) {
            sleep_until_event(f);
            f->emptied_ns = stage_lap(&c->stages.asleep, now, 0);
        }
    }
    stage_lap(&c->stages.alive, began, 0);
    return NULL;
}

int faults_start(struct faults **out, struct capture *c, struct shard *shard, struct error *e)
{
    struct faults *f = calloc(1, sizeof(*f));
    if (!f)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot start the fault thread");
    f->capture = f->events.capture = f->copier.capture = c;
    f->shard = f->events.shard = shard;
    f->written = (struct streams){.first = 1, .most = LOOSEN_MAX_CLUSTERS};
    f->saved = (struct streams){
        .first = AROUND_CLUSTERS, .most = AHEAD_MAX_CLUSTERS, .behind = AROUND_CLUSTERS};
    f->busy_read_ns = BUSY_READ_MIN_NS;
    f->emptied_ns = clock_monotonic_ns();
    f->control = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int ret = f->control < 0 ? -errno : thread_start(&f->thread, fault_thread, f);
    if (ret) {
        if (f->control >= 0)
            close(f->control);
        free(f);
        return error_set(e, VMSNAP_EXIT_FAILED, -ret, "cannot start the fault thread");
    }
    *out = f;
    return 0;
}

int faults_freeze(struct faults *f, int timeout_ms)
{
    uint64_t deadline = clock_monotonic_ns() + (uint64_t)timeout_ms * 1000000u;
    atomic_store(&f->freeze_asked, 1);
    eventfd_write(f->control, 1);
    while (!atomic_load(&f->frozen)) {
        int left = clock_ms_until(deadline);
        if (left == 0 || capture_failed(f->capture))
            return -ETIMEDOUT;
        futex_wait(&f->frozen, 0, left < 100 ? (unsigned)left : 100);
    }
    return 0;
}

int faults_stop(struct faults *f)
{
    atomic_store(&f->stop, true);
    eventfd_write(f->control, 1);
    if (!thread_join_within(f->thread, STOP_LIMIT_S))
        return -ETIMEDOUT;
    histogram_merge(&f->capture->latency, &f->latency);
    close(f->control);
    free(f);
    return 0;
}
