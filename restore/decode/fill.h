/*
 * fill.h - the workers that bring memory in before it is touched: first what is prefetched
 * (prefetch.h), then everything else; and at any time before that what a guest that reads in order
 * is about to touch (ahead.h). They only read and decode, shared memory in place (in_place.h); the
 * server installs. They are throttled by the queue. What is prefetched they bring in at normal
 * priority, for the guest is about to wait for it; the rest only where nobody wants the CPU, after
 * five seconds at low priority.
 */
#ifndef VMSNAP_RESTORE_FILL_H
#define VMSNAP_RESTORE_FILL_H

#include "common/stage.h"
#include "restore/decode/ahead.h"
#include "restore/decode/calm.h"
#include "restore/decode/prefetch.h"
#include "restore/decode/queue.h"
#include "restore/memory/page_state.h"
#include "restore/read/intake.h"

#define FILL_MAX_THREADS CALM_MAX_THREADS

struct fill;

struct fill_config {
    const struct image *img;
    struct intake *intake; /* its clusters */
    const struct blocks *blocks;
    struct page_state *state; /* looked at, to skip what is in already; and claimed (in_place.h) */
    struct queue *queue;
    struct ahead *ahead;
    const struct prefetch *prefetch; /* NULL: nothing is prefetched */
    unsigned n_threads;              /* at most FILL_MAX_THREADS */
    uint64_t bytes_per_s; /* of memory that everything else brings in, at most; 0: no limit */
    /* Called once by a worker: all that is prefetched has been handed to the queue. */
    void (*prefetched)(void *opaque);
    /* Called once by the last worker: everything has been handed to the queue. */
    void (*finished)(void *opaque);
    void *opaque;
};

/* The bytes a slot of the queue must have for these blocks. */
uint64_t fill_slot_bytes(const struct blocks *blocks);

/* What the workers spent their time on, all of them together. */
struct fill_stages {
    struct stage_time decoding;  /* reading, checking, decoding; bytes of memory */
    struct stage_time for_slots; /* waiting for the server to install */
    struct stage_time held_back; /* by the limit on the rate */
    struct stage_time looking;   /* for what is to be brought in */
};

/* How many workers there are where so many are wanted; 0: one for each CPU. */
unsigned fill_choose_threads(unsigned wanted);

/* Starts the workers; they begin with what is prefetched. 0 or -errno. */
int fill_start(struct fill **out, const struct fill_config *config);

/* A fault waits for what a worker has claimed: they get the CPU like the server, or (false) give
 * way to the guest again. The server's thread. */
void fill_hurry(struct fill *f, bool hurry);

/* Lets them go on with the rest. Any thread. */
void fill_allow_all(struct fill *f);

const struct fill_stages *fill_stages(const struct fill *f);

/* Ends and joins the workers, finished or not, and frees. The queue is cancelled by it. */
void fill_stop(struct fill *f);

#endif
