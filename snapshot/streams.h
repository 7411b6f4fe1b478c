/*
 * streams.h - the writers of the guest that go through memory in order, as far as their faults show
 * them. One that goes on about where it was expected is worth going ahead of, by twice as much each
 * time; one that goes anywhere is not.
 *
 * Two uses, each with a table of its own: before the instant what lies ahead is unprotected (and
 * must be protected, perhaps saved, again: so no more than one cluster for a writer that goes
 * anywhere), after it what lies ahead is saved. The fault thread's alone.
 */
#ifndef VMSNAP_SNAPSHOT_STREAMS_H
#define VMSNAP_SNAPSHOT_STREAMS_H

#include <stdint.h>

#define STREAMS_MAX 8u

struct stream {
    uint64_t next;  /* the cluster behind what was done for it: set it after streams_find() */
    uint32_t ahead; /* how many clusters to do now, the written one included; 0: no stream */
};

/* All zero but for the first three: no streams yet. */
struct streams {
    uint32_t first;  /* a new writer's `ahead`; one that writes so close behind `next` goes on */
    uint32_t most;   /* the largest `ahead` */
    uint32_t behind; /* one that writes so close before `next` goes on as well */
    struct stream table[STREAMS_MAX];
    unsigned replaced; /* in turns */
};

/* The writer that has written to `cluster`, one that is known and goes on or a new one. */
struct stream *streams_find(struct streams *t, uint64_t cluster);

#endif
