/*
 * capture.h - what the fault thread (faults.c) and the sweep (sweep.c) share while they save the
 * memory of one instant: the map, the buffers, the way onward, and how the snapshot ends early.
 */
#ifndef VMSNAP_SNAPSHOT_CAPTURE_H
#define VMSNAP_SNAPSHOT_CAPTURE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/histogram.h"
#include "common/pool.h"
#include "common/stage.h"
#include "common/target/target.h"
#include "snapshot/memory/cluster_map.h"
#include "snapshot/save/encode.h"

/* Why saving had to stop. The first reason stays. */
enum capture_failure {
    CAPTURE_OK,
    CAPTURE_CANCELLED,   /* by the main thread, which knows why */
    CAPTURE_TARGET_GONE, /* the process has ended */
    CAPTURE_DISCARDED,   /* the guest's memory was discarded before it was saved */
    CAPTURE_UNMAPPED,    /* memory was unmapped or moved before it was saved */
    CAPTURE_READ,        /* a page could not be read */
    CAPTURE_PROTECT,     /* an ioctl of the userfaultfd failed */
    CAPTURE_STALLED,     /* a write was held longer than --max-stall */
    CAPTURE_OUTPUT,      /* the image could not be written: the sink knows more */
};

/* A cluster that the guest wrote after the instant, in the order of the first writes. */
struct hot_entry {
    uint32_t cluster_low;
    uint8_t cluster_high;
    uint8_t written; /* bit i: page i */
};

/* What the fault thread and the sweep spent their time on. */
struct capture_stages {
    struct stage_time alive;   /* fault thread: from its start to its end */
    struct stage_time serving; /* batches of faults, neighbours and throttled_ns included */
    struct stage_time asleep;  /* the rest of `alive` it read on, to be awake for the next fault */
    struct stage_time looking; /* sweep, and precopy: what is present, what is zero */
    struct stage_time copying;
    struct stage_time for_buffers;
    struct stage_time for_claims; /* what the fault thread had claimed */
    struct stage_time releasing;  /* unprotecting */
};

struct capture {
    const struct target *target;
    const struct region *regions; /* as the source has them */
    uint32_t n_regions;
    struct shard shards[SHARDS_MAX];
    unsigned n_shards;
    struct cluster_map map;
    struct pool *pool;
    struct encoder *encoder;

    int max_stall_ms;

    atomic_int failure; /* enum capture_failure */
    atomic_int failure_errno;
    atomic_uint_fast64_t failure_hva;
    int failed_event; /* eventfd: rings the main thread */

    /* Kept by the fault threads, read by anyone. */
    atomic_uint_fast64_t live_faults; /* before the instant: writes to what was protected already */
    atomic_uint_fast64_t write_faults;
    atomic_uint_fast64_t clusters_from_faults;
    atomic_uint_fast64_t throttled_ns; /* faults waited that long for a buffer */
    struct histogram latency;          /* read it after faults_stop() */
    struct hot_entry *hot;
    atomic_uint_fast64_t n_hot; /* may come to be more than there is room for: capture_n_hot() */
    uint64_t hot_room;

    struct capture_stages stages;

    uint64_t clusters_precopied; /* copies made before the instant, by the main thread */
};

/* Borrows everything. n_shards: 1 to SHARDS_MAX, not open yet. 0 or -ENOMEM. It
 * lives as long as the process. */
int capture_init(struct capture *c, const struct target *target, const struct region *regions,
                 uint32_t n_regions, unsigned n_shards);

/* How many entries the hot list has; after faults_stop(). */
uint64_t capture_n_hot(const struct capture *c);

/* Notes the first failure and rings the main thread. Any thread, never waits. */
void capture_fail(struct capture *c, enum capture_failure why, int err, uint64_t hva);

static inline bool capture_failed(const struct capture *c)
{
    return atomic_load_explicit(&((struct capture *)c)->failure, memory_order_relaxed) !=
           CAPTURE_OK;
}

/* The failure as an error for the user. */
int capture_error(const struct capture *c, struct error *e);

/* Copies a cluster of `range` into pool buffer `buffer`. *captured is ready for encoder_submit();
 * *absent: bit i, page i is absent in the target. 0 or -errno. */
int capture_copy(struct capture *c, const struct cluster_range *range, uint64_t cluster,
                 uint32_t buffer, struct captured *captured, uint64_t *absent);

#endif
