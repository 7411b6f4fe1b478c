/*
 * tracker.h - how much to unprotect at a write before the instant. A written cluster is unprotected
 * and must be protected, perhaps saved, again: so no more than that for a writer that goes
 * anywhere. One that goes on where it was expected is in sequence, and spared faults: each time
 * twice as many clusters ahead of it, so that at most as much is unprotected in vain as it wrote.
 */
#ifndef VMSNAP_SNAPSHOT_TRACKER_H
#define VMSNAP_SNAPSHOT_TRACKER_H

#include <stdint.h>

#define TRACKER_STREAMS 8u
#define TRACKER_MAX_CLUSTERS 64u /* 1 MiB */

struct tracker {
    struct {
        uint64_t next; /* the cluster behind those that were unprotected for it */
        uint32_t clusters;
    } streams[TRACKER_STREAMS];
    unsigned oldest;
};

/* How many clusters to unprotect from the written one on: at least 1. */
uint32_t tracker_extent(struct tracker *t, uint64_t cluster);

#endif
