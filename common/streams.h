/*
 * streams.h - those of the guest that go through memory in order, as far as their faults show them.
 * One that goes on about where it was expected is worth going ahead of, by twice as much each time;
 * one that goes anywhere is not.
 *
 * Three uses, each with a table of its own. A snapshot: before the instant what lies ahead of a
 * writer is unprotected (and must be protected, perhaps saved, again: so no more than one cluster
 * for one that goes anywhere), after it what lies ahead is saved. A restore: what lies ahead of a
 * reader or writer is brought in. The fault thread's alone.
 */
#ifndef VMSNAP_COMMON_STREAMS_H
#define VMSNAP_COMMON_STREAMS_H

#include <stdbool.h>
#include <stdint.h>

#define STREAMS_MAX 8u

struct stream {
    uint64_t next;  /* the cluster behind what was done for it: set it after streams_find() */
    uint32_t ahead; /* how many clusters to do now, the touched one included; 0: no stream */
};

/* All zero but for the first three: no streams yet. */
struct streams {
    uint32_t first;  /* a new one's `ahead`; one that goes on so close behind `next` is known */
    uint32_t most;   /* the largest `ahead` */
    uint32_t behind; /* one that goes on so close before `next` is known as well */
    struct stream table[STREAMS_MAX];
    unsigned replaced; /* in turns */
};

/* The one that has touched `cluster`: a known one that goes on, or a new one. */
struct stream *streams_find(struct streams *t, uint64_t cluster);

/* Whether `cluster` lies in what was last asked for ahead of a stream: it is on its way, and the
 * touch no sign of another stream. */
bool streams_covers(const struct streams *t, uint64_t cluster);

#endif
