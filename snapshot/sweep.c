/*
 * Theory of operation
 *
 * Memory is walked in chunks of 2 MiB (or a huge page of hugetlbfs if that is larger). In each,
 * what is absent in the target is noted as zero without being read; every other cluster that is
 * still frozen is copied first and then taken by compare-and-swap: whoever loses drops its copy, so
 * a fault never waits for the sweep. When the fault thread has finished what it had claimed there,
 * the whole chunk is unprotected by one ioctl, which keeps huge pages whole and mmap_lock short.
 */
#include "snapshot/sweep.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/testhook.h"
#include "common/thread.h"
#include "common/uffd.h"

#define CHUNK_BYTES (2u << 20)
#define CHUNK_PAGES (CHUNK_BYTES / IMAGE_PAGE_BYTES)

struct sweep {
    struct capture *capture;
    struct image_writer *writer;
    int done_event;
    pthread_t thread;
    enum page_presence presence[CHUNK_PAGES];
};

/* A run of clusters of one range, at most CHUNK_BYTES. */
struct chunk {
    const struct cluster_range *range;
    uint64_t from, to;
};

static uint64_t chunk_bytes(const struct chunk *k)
{
    return cluster_offset(k->range, k->to - 1) + cluster_bytes(k->range, k->to - 1) -
           cluster_offset(k->range, k->from);
}

/* Where the data of a file-backed region goes on: offset in the region, its length if nowhere. */
static uint64_t next_data(const struct region *r, uint64_t offset)
{
    off_t at = lseek(r->fd, (off_t)(r->fd_offset + offset), SEEK_DATA);
    if (at < 0)
        return errno == ENXIO ? r->bytes : offset; /* can't tell: read it */
    uint64_t in_region = (uint64_t)at - r->fd_offset;
    return in_region < r->bytes ? in_region : r->bytes;
}

/* A chunk without data in its file, which knows nothing of poison: that is in the page table. */
static int look_for_poison(struct sweep *s, uint64_t hva, size_t n)
{
    int ret = target_presence(s->capture->target, hva, n, s->presence);
    for (size_t i = 0; ret == 0 && i < n; i++)
        if (s->presence[i] == PAGE_PRESENT)
            s->presence[i] = PAGE_ABSENT;
    return ret;
}

/* Fills s->presence for the chunk: PAGE_ABSENT only where the page is surely zero. */
static int look(struct sweep *s, const struct chunk *k)
{
    const struct region *r = k->range->region;
    uint64_t offset = cluster_offset(k->range, k->from);
    size_t n = chunk_bytes(k) / IMAGE_PAGE_BYTES;
    if (r->kind == REGION_SHARED) {
        uint64_t data = next_data(r, offset);
        if (data >= offset + chunk_bytes(k))
            return look_for_poison(s, r->hva + offset, n);
        for (size_t i = 0; i < n; i++)
            s->presence[i] = PAGE_PRESENT;
        return 0;
    }
    int ret = target_presence(s->capture->target, r->hva + offset, n, s->presence);
    if (ret == 0 && r->kind == REGION_PRIVATE_FILE &&
        next_data(r, offset) < offset + chunk_bytes(k))
        for (size_t i = 0; i < n; i++)
            if (s->presence[i] == PAGE_ABSENT)
                s->presence[i] = PAGE_PRESENT; /* not in the page table, but the file has data */
    return ret;
}

static bool absent(const struct sweep *s, const struct chunk *k, uint64_t cluster)
{
    size_t first = (size_t)(cluster - k->from) * IMAGE_CLUSTER_PAGES;
    size_t n = cluster_bytes(k->range, cluster) / IMAGE_PAGE_BYTES;
    for (size_t i = 0; i < n; i++)
        if (s->presence[first + i] != PAGE_ABSENT)
            return false;
    return true;
}

/*
 * Waits until the fault thread has looked at every event that it has read. What was absent before
 * may have been discarded by a sender that such an event let go; now that is known, as a failure.
 * (A page is whole or absent: a copy is never of something in between.)
 */
static bool settle(struct capture *c)
{
    unsigned turn = atomic_load(&c->events_turn);
    while ((turn & 1) && atomic_load(&c->events_turn) == turn && !capture_failed(c))
        sched_yield();
    return !capture_failed(c);
}

/* Copies one cluster and takes it. False: the snapshot has failed. */
static bool copy_cluster(struct sweep *s, const struct chunk *k, uint64_t cluster)
{
    struct capture *c = s->capture;
    uint32_t buffer = pool_take(c->pool, POOL_SWEEP);
    if (buffer == POOL_NONE)
        return false;
    struct captured captured;
    uint64_t unused;
    int ret = capture_copy(c, k->range, cluster, buffer, &captured, &unused);
    if (ret) {
        pool_put(c->pool, buffer);
        if (cluster_state(&c->map, cluster) != CLUSTER_FROZEN)
            return true; /* a fault has saved it; it may well be gone since */
        capture_fail(c, CAPTURE_READ, ret, cluster_hva(k->range, cluster));
        return false;
    }
    if (settle(c) && cluster_save(&c->map, cluster))
        encoder_submit(c->encoder, buffer, &captured);
    else
        pool_put(c->pool, buffer);
    return true;
}

static bool save_chunk(struct sweep *s, const struct chunk *k)
{
    struct capture *c = s->capture;
    int ret = look(s, k);
    if (ret) {
        capture_fail(c, CAPTURE_READ, ret, cluster_hva(k->range, k->from));
        return false;
    }
    if (!settle(c))
        return false;
    for (uint64_t cluster = k->from; cluster < k->to; cluster++) {
        if (capture_failed(c))
            return false;
        if (cluster_state(&c->map, cluster) != CLUSTER_FROZEN)
            continue;
        if (absent(s, k, cluster)) {
            if (cluster_save(&c->map, cluster))
                image_writer_add_zero(s->writer, cluster);
        } else if (!copy_cluster(s, k, cluster)) {
            return false;
        }
        atomic_fetch_add_explicit(&c->clusters_swept, 1, memory_order_relaxed);
    }
    return true;
}

/* Unprotects a range of clusters once each of them is saved. */
static bool release_clusters(struct sweep *s, const struct chunk *k)
{
    struct capture *c = s->capture;
    for (uint64_t cluster = k->from; cluster < k->to; cluster++)
        while (!cluster_is_saved(&c->map, cluster)) { /* claimed by the fault thread: soon */
            if (capture_failed(c))
                return false;
            sched_yield();
        }
    uint64_t hva = cluster_hva(k->range, k->from);
    int ret;
    while ((ret = uffd_unprotect(
                c->uffd, hva, region_whole_pages(k->range->region, chunk_bytes(k)))) == -EAGAIN) {
        if (capture_failed(c))
            return false;
        sched_yield(); /* the fault thread reads the event that is in the way */
    }
    if (ret) {
        capture_fail(c, CAPTURE_PROTECT, ret, hva);
        return false;
    }
    for (uint64_t cluster = k->from; cluster < k->to; cluster++)
        cluster_release(&c->map, cluster);
    return true;
}

/* Saves and releases one range: chunk by chunk, or unit by unit where a unit is larger. */
static bool sweep_range(struct sweep *s, const struct cluster_range *r)
{
    const uint64_t chunk_clusters = CHUNK_BYTES / IMAGE_CLUSTER_BYTES;
    uint64_t end = r->first + r->n_clusters;
    uint64_t unit = r->unit_clusters > chunk_clusters ? r->unit_clusters : chunk_clusters;
    for (uint64_t from = r->first; from < end; from += unit) {
        uint64_t to = from + unit < end ? from + unit : end;
        for (uint64_t at = from; at < to; at += chunk_clusters) {
            struct chunk k = {r, at, at + chunk_clusters < to ? at + chunk_clusters : to};
            if (!save_chunk(s, &k))
                return false;
        }
        struct chunk whole = {r, from, to};
        if (!release_clusters(s, &whole))
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
        s->writer = writer;
        s->done_event = done_event;
        ret = thread_start(&s->thread, sweep_thread, s);
    }
    if (ret) {
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
    free(s);
}
