/*
 * chunk.h - saves a run of clusters that no fault has saved: what the sweep does, and what a pass
 * before the instant does with its own way of taking a cluster.
 */
#ifndef VMSNAP_SNAPSHOT_CHUNK_H
#define VMSNAP_SNAPSHOT_CHUNK_H

#include <stdbool.h>
#include <stdint.h>

#include "common/image/writer.h"
#include "snapshot/save/capture.h"

#define CHUNK_BYTES (2u << 20)
#define CHUNK_CLUSTERS (CHUNK_BYTES / IMAGE_CLUSTER_BYTES)

struct chunk_saver;

enum chunk_time {
    CHUNK_BEFORE, /* the instant: only what is FROZEN; what can't be read well is left as it is */
    CHUNK_AFTER,
};

/* One thread's. The writer is borrowed. NULL when memory is short. */
struct chunk_saver *chunk_saver_new(struct capture *c, struct image_writer *writer,
                                    enum chunk_time time);
void chunk_saver_free(struct chunk_saver *s);

/* Lets whoever waits for buffers look about: called every so often then. Not 0: chunk_save() gives
 * up, with nothing lost. */
void chunk_saver_watch(struct chunk_saver *s, int (*tick)(void *opaque), void *opaque);

/* Forgets what was found before. Before the instant: after every protection, since what was found
 * absent may have come to be before that. */
void chunk_saver_begin(struct chunk_saver *s);

/*
 * Saves the clusters [from, to) of a range, at most CHUNK_CLUSTERS: what is absent is noted as zero
 * without being read; of the rest, as much as there are buffers for is copied at once and then
 * taken cluster by cluster (cluster_save(), cluster_save_early()). Waits for buffers while it holds
 * none. False: the snapshot has failed, or the tick said to give up.
 */
bool chunk_save(struct chunk_saver *s, const struct cluster_range *range, uint64_t from,
                uint64_t to);

#endif
