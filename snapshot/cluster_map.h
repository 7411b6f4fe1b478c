/*
 * cluster_map.h - the life of every cluster (16 KiB) after the instant, one atomic byte each.
 *
 *     FROZEN    protected, content of the instant, not yet saved
 *     CLAIMED   the fault thread is copying it out; nobody else may touch it
 *     SAVED     its copy is in a buffer of ours (or it is known to be zero)
 *     RELEASED  unprotected: the guest owns it
 *
 * The fault thread claims before it copies; the sweep copies first and takes FROZEN -> SAVED by
 * compare-and-swap, dropping its copy if it lost. So no fault ever waits for the sweep. A range is
 * unprotected only when every cluster in it is SAVED or RELEASED.
 */
#ifndef VMSNAP_SNAPSHOT_CLUSTER_MAP_H
#define VMSNAP_SNAPSHOT_CLUSTER_MAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/image_format.h"
#include "common/region.h"

enum cluster_state { CLUSTER_FROZEN, CLUSTER_CLAIMED, CLUSTER_SAVED, CLUSTER_RELEASED };

/* A region and its place in the numbering of clusters. */
struct cluster_range {
    const struct region *region;
    uint64_t first;      /* number of its first cluster in the image */
    uint64_t n_clusters; /* its last one may be short */
    uint64_t n_units;
    uint32_t
        unit_clusters; /* clusters that are released together: 1, or a huge page of hugetlbfs */
};

struct cluster_map {
    struct cluster_range *ranges; /* in the order of the image */
    struct cluster_range **by_hva;
    uint32_t n_ranges;
    uint64_t n_clusters;
    _Atomic uint8_t *states;
    atomic_uint_fast64_t n_saved; /* clusters SAVED or RELEASED */
};

/* Regions are borrowed. All clusters FROZEN. 0 or -ENOMEM. */
int cluster_map_init(struct cluster_map *m, const struct region *regions, uint32_t n_regions);
void cluster_map_free(struct cluster_map *m);

/* The range that contains `hva` (within the region's saved length), or NULL. Any thread. */
const struct cluster_range *cluster_map_find(const struct cluster_map *m, uint64_t hva);

static inline uint8_t cluster_state(const struct cluster_map *m, uint64_t cluster)
{
    return atomic_load_explicit(&m->states[cluster], memory_order_acquire);
}

/* FROZEN -> CLAIMED. False: someone else has it or had it. */
bool cluster_claim(struct cluster_map *m, uint64_t cluster);

/* CLAIMED -> SAVED, by its claimer. */
void cluster_claim_done(struct cluster_map *m, uint64_t cluster);

/* FROZEN -> SAVED, by the sweep after it has copied. False: drop the copy. */
bool cluster_save(struct cluster_map *m, uint64_t cluster);

static inline void cluster_release(struct cluster_map *m, uint64_t cluster)
{
    atomic_store_explicit(&m->states[cluster], CLUSTER_RELEASED, memory_order_release);
}

static inline bool cluster_is_saved(const struct cluster_map *m, uint64_t cluster)
{
    return cluster_state(m, cluster) >= CLUSTER_SAVED;
}

/* Where a cluster starts in its region, in the target, and how many bytes it has. */
static inline uint64_t cluster_offset(const struct cluster_range *r, uint64_t cluster)
{
    return (cluster - r->first) * IMAGE_CLUSTER_BYTES;
}

static inline uint64_t cluster_hva(const struct cluster_range *r, uint64_t cluster)
{
    return r->region->hva + cluster_offset(r, cluster);
}

static inline uint32_t cluster_bytes(const struct cluster_range *r, uint64_t cluster)
{
    uint64_t left = r->region->bytes - cluster_offset(r, cluster);
    return left < IMAGE_CLUSTER_BYTES ? (uint32_t)left : IMAGE_CLUSTER_BYTES;
}

#endif
