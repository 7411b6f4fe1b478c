/*
 * fetched.h - what the demand threads (demand.h) have read: it is installed, and the faults that
 * are parked for it are looked at again; what could not be read is tried again. The server's thread
 * alone.
 */
#ifndef VMSNAP_RESTORE_FETCHED_H
#define VMSNAP_RESTORE_FETCHED_H

#include <stdbool.h>
#include <stdint.h>

#include "restore/decode/demand.h"
#include "restore/read/intake.h"
#include "restore/serve/answer.h"
#include "restore/serve/waiting.h"

struct fetched {
    struct answerer *answerer;
    struct waiting *waiting;
    struct intake *intake; /* owned, and the next */
    struct demand *demand;
    bool has; /* one that got EAGAIN and must be tried again */
    uint32_t slot;
    uint64_t cluster, next_ns; /* the pass over what the fill could not read */
    bool any;                  /* it has found something */
};

/* Makes intake and demand threads, which wake `queue`'s server. 0 or -errno; fetched_stop() in any
 * case. Main thread. */
int fetched_start(struct fetched *f, const struct intake_config *config, struct queue *queue);
/* Lets go of all threads that wait for the storage; then, once nobody uses it, ends them. */
void fetched_let_go(struct fetched *f);
void fetched_stop(struct fetched *f);

/* Something can't be read at the moment. Any thread. */
bool fetched_is_failing(const struct fetched *f);

/* Looks for one, without installing it: before going to sleep. */
bool fetched_look(struct fetched *f);

/* Installs all there is, and begins again with what is to be tried again now. False: one must be
 * tried again; *no_room: for want of memory. */
bool fetched_install(struct fetched *f, bool *no_room);

/* Decodes one that waits for a demand thread to begin with it. False: there is none. */
bool fetched_help(struct fetched *f);

/* Has what the fill could not read tried again, one after another. False: not now. Afterwards
 * answerer_is_incomplete() says whether that was all. */
bool fetched_read_again(struct fetched *f);

/* Something is to be tried again when its time has come: look again in FETCHED_LOOK_NS. */
#define FETCHED_LOOK_NS 100000000u
bool fetched_is_timed(struct fetched *f);

#endif
