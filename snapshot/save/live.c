#include "snapshot/save/live.h"

#include <errno.h>
#include <sched.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/uffd.h"
#include "snapshot/save/chunk.h"

/*
 * A piece is a chunk of 2 MiB. While a range is being protected KVM answers no fault of the guest
 * in it, and a fault that overlaps the beginning or end of a call is begun anew: with pieces of 16
 * MiB the 99.9th percentile of a random writer's writes was 1.1 ms during a pass, with 2 MiB 0.13
 * ms, for a pass that takes a tenth longer. Sleeping between pieces made both worse.
 */

/* So few are protected in the pause without being felt (half a millisecond). */
#define FEW_CLUSTERS 500u
/* A pass that leaves more than this many of 4 that the last one left is the last one. */
#define SHRINKS_TO_FOURTHS 3u
#define SETTLE_MAX_NS 5000000000u

/* Protects [from, to), a piece. Waits while the fault thread reads an event that is in the way. */
static int protect_piece(struct live *l, const struct cluster_range *r, uint64_t from, uint64_t to,
                         struct error *e)
{
    struct capture *c = l->capture;
    uint64_t deadline = clock_monotonic_ns() + (uint64_t)l->timeout_ms * 1000000u;
    uint64_t hva = cluster_hva(r, from), bytes = cluster_span_bytes(r, from, to);
    int ret;
    while ((ret = uffd_protect(r->shard->uffd, hva, bytes)) == -EAGAIN &&
           clock_monotonic_ns() < deadline && !capture_failed(c))
        sched_yield();
    if (ret)
        capture_fail(c, CAPTURE_PROTECT, ret, hva);
    return capture_failed(c) ? capture_error(c, e) : 0;
}

/* The end of the run of DIRTY clusters at `from`, at most a piece further. */
static uint64_t run_end(const struct cluster_map *m, const struct cluster_range *r, uint64_t from)
{
    uint64_t most = CHUNK_CLUSTERS;
    if (most < r->unit_clusters)
        most = r->unit_clusters;
    uint64_t end = r->first + r->n_clusters;
    if (end - from > most)
        end = from + most;
    uint64_t to = from + 1;
    while (to < end && cluster_state(m, to) == CLUSTER_DIRTY)
        to++;
    return to;
}

/* Copies [from, to), which is protected now: a chunk, or a huge page of hugetlbfs if that is
 * larger.
 */
static int save_piece(struct live *l, const struct cluster_range *r, uint64_t from, uint64_t to,
                      struct error *e)
{
    chunk_saver_begin(l->saver);
    for (uint64_t at = from; at < to; at += CHUNK_CLUSTERS) {
        int ret = l->tick(l->opaque);
        if (ret)
            return ret;
        if (chunk_save(l->saver, r, at, to - at < CHUNK_CLUSTERS ? to : at + CHUNK_CLUSTERS))
            continue;
        ret = l->tick(l->opaque);
        if (ret)
            return ret;
        return capture_failed(l->capture)
                   ? capture_error(l->capture, e)
                   : error_set(e, VMSNAP_EXIT_FAILED, EIO, "cannot write the image");
    }
    return 0;
}

static int pass_over(struct live *l, const struct cluster_range *r, struct error *e)
{
    struct cluster_map *m = &l->capture->map;
    uint64_t end = r->first + r->n_clusters;
    for (uint64_t from = r->first, to; (from = cluster_map_next_dirty(m, from, end)) < end;
         from = to) {
        int ret = l->tick(l->opaque);
        if (ret)
            return ret;
        to = run_end(m, r, from);
        cluster_range_whole_units(r, &from, &to);
        for (uint64_t cluster = from; cluster < to; cluster++)
            cluster_track(m, cluster);
        ret = protect_piece(l, r, from, to, e);
        if (!ret && l->saver)
            ret = save_piece(l, r, from, to, e);
        if (ret)
            return ret;
    }
    return 0;
}

static uint64_t count_dirty(const struct cluster_map *m)
{
    uint64_t n = 0;
    for (uint64_t at = 0; (at = cluster_map_next_dirty(m, at, m->n_clusters)) < m->n_clusters; at++)
        n++;
    return n;
}

static int pass(struct live *l, uint64_t *left, struct error *e)
{
    struct cluster_map *m = &l->capture->map;
    uint64_t begin = clock_monotonic_ns();
    int ret = 0;
    for (uint32_t i = 0; !ret && i < m->n_ranges; i++)
        ret = pass_over(l, &m->ranges[i], e);
    *left = count_dirty(m);
    uint64_t ns = clock_monotonic_ns() - begin;
    l->passes++;
    l->ns += ns;
    if (!ret)
        log_info("live pass %u: %.1f ms, %llu clusters written meanwhile", l->passes,
                 (double)ns / 1e6, (unsigned long long)*left);
    return ret;
}

/* Waits until every copy is in the image: a compressor gives a buffer back after that. */
static int drain(struct live *l, struct error *e)
{
    while (!pool_is_idle(l->capture->pool)) {
        int ret = l->tick(l->opaque);
        if (ret)
            return ret;
        if (capture_failed(l->capture))
            return capture_error(l->capture, e);
        usleep(200);
    }
    return 0;
}

int live_precopy(struct live *l, struct chunk_saver *saver, struct live_precopy *result,
                 struct error *e)
{
    struct capture *c = l->capture;
    uint64_t begin = clock_monotonic_ns(), left;
    uint64_t faults = atomic_load(&c->live_faults), copied = c->clusters_precopied;
    l->saver = saver;
    chunk_saver_watch(saver, l->tick, l->opaque);
    int ret = pass(l, &left, e);
    l->saver = NULL;
    if (!ret)
        ret = drain(l, e);
    *result = (struct live_precopy){
        .write_faults = atomic_load(&c->live_faults) - faults,
        .saved_bytes = (c->clusters_precopied - copied) * IMAGE_CLUSTER_BYTES,
        .ns = clock_monotonic_ns() - begin,
    };
    if (!ret)
        log_info("precopy: %.1f MiB saved in %.1f ms, %llu write faults meanwhile",
                 (double)result->saved_bytes / 1048576, (double)result->ns / 1e6,
                 (unsigned long long)result->write_faults);
    return ret;
}

int live_settle(struct live *l, struct error *e)
{
    uint64_t left = count_dirty(&l->capture->map), before;
    uint64_t deadline = clock_monotonic_ns() + SETTLE_MAX_NS;
    if (left <= FEW_CLUSTERS && l->passes > 0)
        return 0;
    do {
        before = left;
        int ret = pass(l, &left, e);
        if (ret)
            return ret;
    } while (left > FEW_CLUSTERS && left <= before / 4 * SHRINKS_TO_FOURTHS &&
             clock_monotonic_ns() < deadline);
    return 0;
}
