#include "snapshot/memory/cluster_map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define HUGE_PAGE_BYTES (2ull << 20)

static int compare_hva(const void *a, const void *b)
{
    const struct cluster_range *const *x = a, *const *y = b;
    uint64_t hx = (*x)->region->hva, hy = (*y)->region->hva;
    return hx < hy ? -1 : hx > hy;
}

/*
 * The length of a region's parts but the last, which may be shorter: whole transparent huge pages.
 * hugetlbfs is not cut: the kernel does not join its mappings again, and Linux 6.1 takes no call
 * that covers two, so a later snapshot with other cuts failed there.
 */
static uint64_t part_bytes(const struct region *r, unsigned n_shards)
{
    uint64_t n_pages = (r->bytes + HUGE_PAGE_BYTES - 1) / HUGE_PAGE_BYTES;
    if (r->page_bytes > IMAGE_PAGE_BYTES || r->hva % HUGE_PAGE_BYTES)
        return r->bytes;
    return (n_pages + n_shards - 1) / n_shards * HUGE_PAGE_BYTES;
}

static void add_range(struct cluster_map *m, const struct region *whole, uint64_t offset,
                      uint64_t bytes, struct shard *shard)
{
    struct region *part = &m->parts[m->n_ranges];
    struct cluster_range *r = &m->ranges[m->n_ranges];
    *part = *whole;
    part->hva += offset;
    part->fd_offset += offset;
    part->bytes = bytes;
    part->max_bytes -= offset;
    r->region = part;
    r->shard = shard;
    r->first = m->n_clusters;
    r->n_clusters = (bytes + IMAGE_CLUSTER_BYTES - 1) / IMAGE_CLUSTER_BYTES;
    r->unit_clusters = part->page_bytes > IMAGE_CLUSTER_BYTES
                           ? (uint32_t)(part->page_bytes / IMAGE_CLUSTER_BYTES)
                           : 1;
    r->n_units = (r->n_clusters + r->unit_clusters - 1) / r->unit_clusters;
    m->by_hva[m->n_ranges++] = r;
    m->n_clusters += r->n_clusters;
}

static void add_region(struct cluster_map *m, const struct region *whole, struct shard *shards,
                       unsigned n_shards)
{
    uint64_t most = part_bytes(whole, n_shards);
    for (uint64_t at = 0; at < whole->bytes; at += most)
        add_range(m, whole, at, whole->bytes - at < most ? whole->bytes - at : most, shards++);
}

int cluster_map_init(struct cluster_map *m, const struct region *regions, uint32_t n_regions,
                     struct shard *shards, unsigned n_shards)
{
    *m = (struct cluster_map){0};
    size_t most = (size_t)n_regions * n_shards;
    m->ranges = calloc(most, sizeof(*m->ranges));
    m->by_hva = calloc(most, sizeof(*m->by_hva));
    m->parts = calloc(most, sizeof(*m->parts));
    if (!m->ranges || !m->by_hva || !m->parts) {
        cluster_map_free(m);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < n_regions; i++)
        add_region(m, &regions[i], shards, n_shards);
    qsort(m->by_hva, m->n_ranges, sizeof(*m->by_hva), compare_hva);
    m->states = malloc(m->n_clusters ? m->n_clusters : 1);
    if (!m->states) {
        cluster_map_free(m);
        return -ENOMEM;
    }
    memset((void *)m->states, CLUSTER_UNTRACKED, m->n_clusters);
    return 0;
}

void cluster_map_free(struct cluster_map *m)
{
    free(m->ranges);
    free(m->by_hva);
    free(m->parts);
    free((void *)m->states);
    *m = (struct cluster_map){0};
}

const struct cluster_range *cluster_map_find(const struct cluster_map *m, uint64_t hva)
{
    uint32_t low = 0, high = m->n_ranges;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        const struct region *r = m->by_hva[middle]->region;
        if (hva < r->hva)
            high = middle;
        else if (hva - r->hva >= r->bytes)
            low = middle + 1;
        else
            return m->by_hva[middle];
    }
    return NULL;
}

void cluster_range_whole_units(const struct cluster_range *r, uint64_t *from, uint64_t *to)
{
    uint64_t first = *from - r->first, last = *to - r->first + r->unit_clusters - 1;
    *from -= first % r->unit_clusters;
    *to = r->first + last - last % r->unit_clusters;
    if (*to > r->first + r->n_clusters)
        *to = r->first + r->n_clusters;
}

static bool swap(struct cluster_map *m, uint64_t cluster, uint8_t *from, uint8_t to)
{
    return atomic_compare_exchange_strong_explicit(&m->states[cluster], from, to,
                                                   memory_order_acq_rel, memory_order_acquire);
}

/* Open -> to. */
static bool take(struct cluster_map *m, uint64_t cluster, uint8_t to)
{
    uint8_t state = cluster_state(m, cluster);
    while (cluster_state_is_open(state))
        if (swap(m, cluster, &state, to))
            return true;
    return false;
}

bool cluster_claim(struct cluster_map *m, uint64_t cluster)
{
    return take(m, cluster, CLUSTER_CLAIMED);
}

void cluster_claim_done(struct cluster_map *m, uint64_t cluster)
{
    atomic_store_explicit(&m->states[cluster], CLUSTER_SAVED, memory_order_release);
    atomic_fetch_add_explicit(&m->n_saved, 1, memory_order_relaxed);
}

bool cluster_save(struct cluster_map *m, uint64_t cluster)
{
    if (!take(m, cluster, CLUSTER_SAVED))
        return false;
    atomic_fetch_add_explicit(&m->n_saved, 1, memory_order_relaxed);
    return true;
}

/* ---- before the instant ---- */

bool cluster_save_early(struct cluster_map *m, uint64_t cluster)
{
    uint8_t frozen = CLUSTER_FROZEN;
    /* Counted first: if it is made dirty right after, that takes the count back. */
    atomic_fetch_add_explicit(&m->n_saved, 1, memory_order_relaxed);
    if (swap(m, cluster, &frozen, CLUSTER_SAVED))
        return true;
    atomic_fetch_sub_explicit(&m->n_saved, 1, memory_order_relaxed);
    return false;
}

bool cluster_track(struct cluster_map *m, uint64_t cluster)
{
    uint8_t dirty = CLUSTER_DIRTY;
    return swap(m, cluster, &dirty, CLUSTER_FROZEN);
}

/* The cluster's copy, if there is one, holds no longer. */
static void loosen(struct cluster_map *m, uint64_t cluster, uint8_t to)
{
    uint8_t state = cluster_state(m, cluster);
    while (state != CLUSTER_LEFT && state != to &&
           !(state == CLUSTER_UNTRACKED && to == CLUSTER_DIRTY))
        if (swap(m, cluster, &state, to)) {
            if (state == CLUSTER_SAVED)
                atomic_fetch_sub_explicit(&m->n_saved, 1, memory_order_relaxed);
            return;
        }
}

void cluster_dirty(struct cluster_map *m, uint64_t cluster)
{
    loosen(m, cluster, CLUSTER_DIRTY);
}

void cluster_leave(struct cluster_map *m, uint64_t cluster)
{
    loosen(m, cluster, CLUSTER_LEFT);
}

void cluster_map_track_all(struct cluster_map *m, uint64_t from, uint64_t to)
{
    for (uint64_t cluster = from; cluster < to; cluster++) {
        uint8_t untracked = CLUSTER_UNTRACKED;
        swap(m, cluster, &untracked, CLUSTER_DIRTY);
    }
}

/* ---- searching ---- */

#define EACH_LOOSE 0x8080808080808080ull

/* Eight states at once; `at` is a multiple of 8 (of the map's start, which
 * malloc() has aligned). */
static uint64_t eight(const struct cluster_map *m, uint64_t at)
{
    const uint64_t *word = (const void *)(m->states + at);
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

uint64_t cluster_map_next_loose(const struct cluster_map *m, uint64_t from, uint64_t to, bool loose)
{
    const uint64_t unwanted = loose ? 0 : EACH_LOOSE;
    while (from < to) {
        if (from % 8 == 0)
            while (from + 8 <= to && (eight(m, from) & EACH_LOOSE) == unwanted)
                from += 8;
        if (from < to && ((cluster_state(m, from) & CLUSTER_LOOSE) != 0) == loose)
            return from;
        from++;
    }
    return to;
}

uint64_t cluster_map_next_dirty(const struct cluster_map *m, uint64_t from, uint64_t to)
{
    while ((from = cluster_map_next_loose(m, from, to, true)) < to &&
           cluster_state(m, from) != CLUSTER_DIRTY)
        from++;
    return from;
}
