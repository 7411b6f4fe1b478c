/*
 * cluster_map.h - the life of every cluster (16 KiB), one atomic byte each.
 *
 *     UNTRACKED unprotected; whether it is left to the pause is not decided yet
 *     LEFT      unprotected, and left so until the pause
 *     DIRTY     unprotected; the next live pass protects it, or the pause
 *     FROZEN    protected (or absent, which tells as well when it is touched), not saved
 *     CLAIMED   the fault thread is copying it out; nobody else may touch it
 *     SAVED     its copy is in a buffer of ours (or it is known to be zero)
 *     RELEASED  unprotected: the guest owns it
 *
 * Before the instant (live.h) FROZEN means that a write will be noticed, SAVED that the copy holds
 * as long as none is; a write makes either DIRTY, a discard LEFT, whatever is decided about it
 * later. The pause protects all that is LOOSE, and that is all it does: from then on that means the
 * same as FROZEN ("open").
 *
 * After the instant the fault thread claims before it copies; the sweep copies first and takes open
 * -> SAVED by compare-and-swap, dropping its copy if it lost. So no fault ever waits for the sweep.
 * A range is unprotected only when every cluster in it is SAVED or RELEASED.
 *
 * Before the instant the main thread decides what is tracked (UNTRACKED -> DIRTY, or all LEFT) and
 * then takes DIRTY -> FROZEN -> SAVED; the fault thread takes any of these back to DIRTY or LEFT.
 */
#ifndef VMSNAP_SNAPSHOT_CLUSTER_MAP_H
#define VMSNAP_SNAPSHOT_CLUSTER_MAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/image/format.h"
#include "common/target/region.h"
#include "snapshot/memory/shard.h"

#define CLUSTER_LOOSE 0x80 /* the bit of all states in which a cluster may not be protected */

enum cluster_state {
    CLUSTER_FROZEN,
    CLUSTER_CLAIMED,
    CLUSTER_SAVED,
    CLUSTER_RELEASED,
    CLUSTER_DIRTY = CLUSTER_LOOSE,
    CLUSTER_LEFT,
    CLUSTER_UNTRACKED,
};

/* A region, or the part of one that lies in a shard, and its place in the numbering of clusters. */
struct cluster_range {
    const struct region *region; /* what of it lies in this range */
    struct shard *shard;
    uint64_t first;      /* number of its first cluster in the image */
    uint64_t n_clusters; /* its last one may be short */
    uint64_t n_units;
    uint32_t
        unit_clusters; /* clusters that are released together: 1, or a huge page of hugetlbfs */
};

struct cluster_map {
    struct cluster_range *ranges; /* in the order of the image */
    struct cluster_range **by_hva;
    struct region *parts; /* by range */
    uint32_t n_ranges;
    uint64_t n_clusters;
    _Atomic uint8_t *states;
    atomic_uint_fast64_t n_saved; /* clusters SAVED or RELEASED */
};

/* Cuts large regions into a part for each shard, no huge page in two; the first has what is small,
 * begins within a huge page, or is hugetlbfs. The regions' descriptors are borrowed, and the
 * shards. All clusters UNTRACKED. 0 or -ENOMEM. */
int cluster_map_init(struct cluster_map *m, const struct region *regions, uint32_t n_regions,
                     struct shard *shards, unsigned n_shards);
void cluster_map_free(struct cluster_map *m);

/* The range that contains `hva` (within the region's saved length), or NULL. Any thread. */
const struct cluster_range *cluster_map_find(const struct cluster_map *m, uint64_t hva);

static inline uint8_t cluster_state(const struct cluster_map *m, uint64_t cluster)
{
    return atomic_load_explicit(&m->states[cluster], memory_order_acquire);
}

static inline bool cluster_state_is_open(uint8_t state)
{
    return state == CLUSTER_FROZEN || (state & CLUSTER_LOOSE);
}

/* After the instant: nobody has saved it, nobody is about to. */
static inline bool cluster_is_open(const struct cluster_map *m, uint64_t cluster)
{
    return cluster_state_is_open(cluster_state(m, cluster));
}

/* Open -> CLAIMED. False: someone else has it or had it. */
bool cluster_claim(struct cluster_map *m, uint64_t cluster);

/* CLAIMED -> SAVED, by its claimer. */
void cluster_claim_done(struct cluster_map *m, uint64_t cluster);

/* Open -> SAVED, by the sweep after it has copied. False: drop the copy. */
bool cluster_save(struct cluster_map *m, uint64_t cluster);

/* ---- before the instant ---- */

/* FROZEN -> SAVED. False: drop the copy. */
bool cluster_save_early(struct cluster_map *m, uint64_t cluster);

/* DIRTY -> FROZEN, before it is protected. False: it is not DIRTY. */
bool cluster_track(struct cluster_map *m, uint64_t cluster);

/* Written to: DIRTY, unless it is not tracked. After it has been unprotected (live.h says why). */
void cluster_dirty(struct cluster_map *m, uint64_t cluster);

/* -> LEFT. */
void cluster_leave(struct cluster_map *m, uint64_t cluster);

/* UNTRACKED -> DIRTY for all of [from, to). What has been discarded since it is registered is LEFT
 * already, and stays so. */
void cluster_map_track_all(struct cluster_map *m, uint64_t from, uint64_t to);

/* The first DIRTY cluster of [from, to), or `to`. At the speed of memory. */
uint64_t cluster_map_next_dirty(const struct cluster_map *m, uint64_t from, uint64_t to);

/* The first cluster of [from, to) that is LOOSE (or is not), or `to`. At the speed of memory. */
uint64_t cluster_map_next_loose(const struct cluster_map *m, uint64_t from, uint64_t to,
                                bool loose);

static inline void cluster_release(struct cluster_map *m, uint64_t cluster)
{
    atomic_store_explicit(&m->states[cluster], CLUSTER_RELEASED, memory_order_release);
}

static inline bool cluster_is_saved(const struct cluster_map *m, uint64_t cluster)
{
    uint8_t state = cluster_state(m, cluster);
    return state == CLUSTER_SAVED || state == CLUSTER_RELEASED;
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

/* The cluster that contains `hva`, which lies in the range. */
static inline uint64_t cluster_at(const struct cluster_range *r, uint64_t hva)
{
    return r->first + (hva - r->region->hva) / IMAGE_CLUSTER_BYTES;
}

/* Widens [*from, *to) to whole units. */
void cluster_range_whole_units(const struct cluster_range *r, uint64_t *from, uint64_t *to);

static inline uint32_t cluster_bytes(const struct cluster_range *r, uint64_t cluster)
{
    uint64_t left = r->region->bytes - cluster_offset(r, cluster);
    return left < IMAGE_CLUSTER_BYTES ? (uint32_t)left : IMAGE_CLUSTER_BYTES;
}

/* The bytes of [from, to), whole pages of the region: what a call of the userfaultfd takes. */
static inline uint64_t cluster_span_bytes(const struct cluster_range *r, uint64_t from, uint64_t to)
{
    return region_whole_pages(r->region, cluster_offset(r, to - 1) + cluster_bytes(r, to - 1) -
                                             cluster_offset(r, from));
}

#endif
