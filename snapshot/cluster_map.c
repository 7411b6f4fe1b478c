#include "snapshot/cluster_map.h"

#include <errno.h>
#include <stdlib.h>

static int compare_hva(const void *a, const void *b)
{
    const struct cluster_range *const *x = a, *const *y = b;
    uint64_t hx = (*x)->region->hva, hy = (*y)->region->hva;
    return hx < hy ? -1 : hx > hy;
}

int cluster_map_init(struct cluster_map *m, const struct region *regions, uint32_t n_regions)
{
    *m = (struct cluster_map){.n_ranges = n_regions};
    m->ranges = calloc(n_regions, sizeof(*m->ranges));
    m->by_hva = calloc(n_regions, sizeof(*m->by_hva));
    if (!m->ranges || !m->by_hva) {
        cluster_map_free(m);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < n_regions; i++) {
        struct cluster_range *r = &m->ranges[i];
        r->region = &regions[i];
        r->first = m->n_clusters;
        r->n_clusters = (regions[i].bytes + IMAGE_CLUSTER_BYTES - 1) / IMAGE_CLUSTER_BYTES;
        r->unit_clusters = regions[i].page_bytes > IMAGE_CLUSTER_BYTES
                               ? (uint32_t)(regions[i].page_bytes / IMAGE_CLUSTER_BYTES)
                               : 1;
        r->n_units = (r->n_clusters + r->unit_clusters - 1) / r->unit_clusters;
        m->n_clusters += r->n_clusters;
        m->by_hva[i] = r;
    }
    qsort(m->by_hva, n_regions, sizeof(*m->by_hva), compare_hva);
    m->states = calloc(m->n_clusters ? m->n_clusters : 1, sizeof(*m->states));
    if (!m->states) {
        cluster_map_free(m);
        return -ENOMEM;
    }
    return 0;
}

void cluster_map_free(struct cluster_map *m)
{
    free(m->ranges);
    free(m->by_hva);
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

static bool take(struct cluster_map *m, uint64_t cluster, uint8_t to)
{
    uint8_t frozen = CLUSTER_FROZEN;
    return atomic_compare_exchange_strong_explicit(&m->states[cluster], &frozen, to,
                                                   memory_order_acq_rel, memory_order_acquire);
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
