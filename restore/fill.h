/*
 * fill.h - the worker threads that bring memory in before it is touched: first the hot list (what
 * the guest wrote right after the instant, in its order), then everything else. They only read and
 * decode; the server installs. They run at low priority and are throttled by the queue.
 */
#ifndef VMSNAP_RESTORE_FILL_H
#define VMSNAP_RESTORE_FILL_H

#include "restore/page_state.h"
#include "restore/queue.h"

struct fill;

struct fill_config {
    const struct image *img;
    const struct blocks *blocks;
    const struct page_state *state; /* looked at, to skip what is in already */
    struct queue *queue;
    unsigned n_threads;
    bool prefetch_hot;
    /* Called once by a worker: the hot list has been handed to the queue. */
    void (*prefetched)(void *opaque);
    /* Called once by the last worker: everything has been handed to the queue. */
    void (*finished)(void *opaque);
    void *opaque;
};

/* The bytes a slot of the queue must have for these blocks. */
uint64_t fill_slot_bytes(const struct blocks *blocks);

/* Starts the workers; they begin with the hot list. 0 or -errno. */
int fill_start(struct fill **out, const struct fill_config *config);

/* Lets them go on with the rest. Any thread. */
void fill_allow_all(struct fill *f);

/* Ends and joins the workers, finished or not, and frees. The queue is cancelled by it. */
void fill_stop(struct fill *f);

#endif
