/*
 * waiting.h - faults that were read and not answered yet: to be answered by the server itself, or
 * parked until another thread has their content (demand.h), or has room to read it. There is a
 * bound to how many are kept: where more threads wait than that some are forgotten, and woken after
 * a while, so that their faults come again. The server's thread alone.
 */
#ifndef VMSNAP_RESTORE_WAITING_H
#define VMSNAP_RESTORE_WAITING_H

#include <stdbool.h>
#include <stdint.h>

#include "common/histogram.h"
#include "restore/serve/answer.h"

#define WAITING_MAX 1024u

/* Where so many wait at a time, the server decodes for the first alone, and lets the demand threads
 * begin with the others. */
#define WAITING_CROWD 4u

struct waiting_fault {
    uint64_t hva;
    uint64_t since_ns;
    bool write;
    bool lacks_place; /* parked: nobody has been told to read its content */
};

struct waiting {
    struct waiting_fault faults[WAITING_MAX], parked[WAITING_MAX];
    unsigned n, n_parked; /* WAITING_MAX together */
    unsigned n_behind;    /* of the first: for a job that a worker is at */
    unsigned crowd;       /* as WAITING_CROWD */
    bool forgot;          /* threads wait of whom nothing is kept here */
    uint64_t woken_ns;    /* when such were woken last */
    uint64_t n_answered;
    uint64_t last_ns; /* when the last one was answered */
    struct histogram times;
};

static inline unsigned waiting_room(const struct waiting *w)
{
    return WAITING_MAX - w->n - w->n_parked;
}

/* Sees to it that there is room, by forgetting some: those that are parked, or, if there are none,
 * the last that came. Returns how much. */
unsigned waiting_make_room(struct waiting *w);

/* Wakes who was forgotten once in a while: each thread's fault comes again. */
void waiting_wake_forgotten(struct waiting *w, int uffd, const struct blocks *blocks);
/* All who wait for anything. */
void waiting_wake_all(int uffd, const struct blocks *blocks);

/* There must be room. Of one that is parked and comes again (its thread had a signal) the new one
 * is kept: what answers it wakes both. */
void waiting_add(struct waiting *w, const struct waiting_fault *fault);

/* Answers those that are not parked; keeps what must be tried again. True when something is kept
 * for want of room. */
bool waiting_answer(struct waiting *w, struct answerer *a);

/* Something has become of memory in [hva, hva + len), and there may be a place for those that lack
 * one: who is parked for either is to be looked at again. */
void waiting_unpark(struct waiting *w, uint64_t hva, uint64_t len);

/* Those that are parked for that memory are forgotten. */
void waiting_forget(struct waiting *w, uint64_t hva, uint64_t len);

/* Whether one has waited for a quarter of a second or more. */
bool waiting_is_long(const struct waiting *w, uint64_t now_ns);

/* Whether a parked one waits for memory in [hva, hva + len). */
bool waiting_is_parked(const struct waiting *w, uint64_t hva, uint64_t len);

#endif
