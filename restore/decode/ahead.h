/*
 * ahead.h - reading ahead of a guest that goes through memory in order. The server notes which
 * clusters are demanded; where they follow each other it asks for what lies before them, twice as
 * far each time, up to 2 MiB. The fill workers bring that in before anything else.
 *
 * A cluster on its way that is demanded all the same is answered like any other.
 */
#ifndef VMSNAP_RESTORE_AHEAD_H
#define VMSNAP_RESTORE_AHEAD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/ring.h"
#include "common/streams.h"
#include "restore/decode/calm.h"
#include "restore/memory/blocks.h"

#define AHEAD_RUN 4u /* clusters that are asked for at once */

struct ahead {
    struct streams streams; /* the server's */
    struct ring runs;       /* numbers of runs: first cluster / AHEAD_RUN */
    atomic_uint asked;      /* futex word: counts the askings */
    atomic_uint waiting;    /* workers that sleep on it */
    atomic_bool on;
    /* Of those who take it; outlives the server's thread. NULL: none yet. */
    struct calm *_Atomic calm;
};

/* Off at first. 0 or -ENOMEM. */
int ahead_init(struct ahead *a);
void ahead_free(struct ahead *a);

/* From now on somebody takes what is asked for. Any thread. */
void ahead_turn_on(struct ahead *a);

/* The server's thread: the unit of n clusters was brought in on demand. Never waits. */
void ahead_note(struct ahead *a, const struct block *b, uint64_t cluster, uint64_t n);

/* A worker: the first cluster of the next run that is wanted, AHEAD_RUN of them, of which some may
 * be in already, or in another block. False: none. */
bool ahead_take(struct ahead *a, uint64_t *cluster);

/* A worker: sleeps until something may be asked for, or about `ms` have passed, but at
 * most 200 ms. */
void ahead_wait(struct ahead *a, unsigned ms);
/* Wakes those. */
void ahead_wake(struct ahead *a);

#endif
