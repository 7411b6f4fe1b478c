/*
 * Theory of operation
 *
 * Memory is walked in chunks of 2 MiB (or a huge page of hugetlbfs if that is larger). Each is
 * saved (chunk.c) without a fault ever waiting for it. When the fault thread has finished what it
 * had claimed there, the whole chunk is unprotected by one ioctl, which keeps huge pages whole and
 * mmap_lock short.
 */
#include "snapshot/save/sweep.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/testhook.h"
#include "common/thread.h"
#include "common/uffd.h"
#include "snapshot/save/chunk.h"

struct sweep {
    struct capture *capture;
    struct chunk_saver *saver;
    int done_event;
    pthread_t thread;
};

/* Unprotects a range of clusters once each of them is saved. */
static bool release_clusters(struct sweep *s, const struct cluster_range *range, uint64_t from,
                             uint64_t to)
{
    struct capture *c = s->capture;
    uint64_t lap = clock_monotonic_ns();
    for (uint64_t cluster = from; cluster < to; cluster++)
        while (!cluster_is_saved(&c->map, cluster)) { /* claimed by the fault thread: soon */
            if (capture_failed(c))
                return false;
            sched_yield();
        }
    lap = stage_lap(&c->stages.for_claims, lap, 0);
    uint64_t hva = cluster_hva(range, from);
    uint64_t bytes = cluster_hva(range, to - 1) + cluster_bytes(range, to - 1) - hva;
    int ret;
    while ((ret = uffd_unprotect(range->shard->uffd, hva,
                                 region_whole_pages(range->region, bytes))) == -EAGAIN) {
        if (capture_failed(c))
            return false;
        sched_yield(); /* the fault thread reads the event that is in the way */
    }
    if (ret) {
        capture_fail(c, CAPTURE_PROTECT, ret, hva);
        return false;
    }
    for (uint64_t cluster = from; cluster < to; cluster++)
        cluster_release(&c->map, cluster);
    stage_lap(&c->stages.releasing, lap, bytes);
    return true;
}

/* Saves and releases one range: chunk by chunk, or unit by unit where a unit is larger. */
static bool sweep_range(struct sweep *s, const struct cluster_range *r)
{
    uint64_t end = r->first + r->n_clusters;
    uint64_t unit = r->unit_clusters > CHUNK_CLUSTERS ? r->unit_clusters : CHUNK_CLUSTERS;
    for (uint64_t from = r->first; from < end; from += unit) {
        uint64_t to = from + unit < end ? from + unit : end;
        for (uint64_t at = from; at < to; at += CHUNK_CLUSTERS)
            if (!chunk_save(s->saver, r, at, at + CHUNK_CLUSTERS < to ? at + CHUNK_CLUSTERS : to))
                return false;
        if (!release_clusters(s, r, from, to))
            return false;
        TESTHOOK_POINT("snapshot-sweeping");
    }
    return true;
}

static void *sweep_thread(void *opaque)
{
    struct sweep *s = opaque;
    prctl(PR_SET_NAME, "vmsnap-sweep");
    for (uint32_t i = 0; i < s->capture->map.n_ranges; i++)
        if (!sweep_range(s, &s->capture->map.ranges[i]))
            break;
    eventfd_write(s->done_event, 1);
    return NULL;
}

int sweep_start(struct sweep **out, struct capture *c, struct image_writer *writer, int done_event,
                struct error *e)
{
    struct sweep *s = calloc(1, sizeof(*s));
    int ret = s ? 0 : -ENOMEM;
    if (s) {
        s->capture = c;
        s->done_event = done_event;
        s->saver = chunk_saver_new(c, writer, CHUNK_AFTER);
        ret = !s->saver ? -ENOMEM : thread_start(&s->thread, sweep_thread, s);
    }
    if (ret) {
        if (s)
            chunk_saver_free(s->saver);
        free(s);
        return error_set(e, VMSNAP_EXIT_FAILED, -ret, "cannot start the sweep");
    }
    *out = s;
    return 0;
}

void sweep_join(struct sweep *s)
{
    if (!s)
        return;
    pthread_join(s->thread, NULL);
    chunk_saver_free(s->saver);
    free(s);
}
