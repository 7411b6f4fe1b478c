/*
 * queue.h - decoded memory on its way from the fill workers to the server, which installs it when
 * no fault waits. Bounded: a worker that is ahead waits for a free slot. Neither side takes a lock,
 * so that a worker that lost its CPU in the middle never holds the server up.
 */
#ifndef VMSNAP_RESTORE_QUEUE_H
#define VMSNAP_RESTORE_QUEUE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/pool.h"
#include "common/ring.h"
#include "restore/memory/blocks.h"

enum job_origin {
    JOB_PREFETCH, /* the learned set, the hot list */
    JOB_AHEAD,    /* before a guest that reads in order: goes before all others */
    JOB_FILL,
    JOB_DEMAND, /* a fault waits for it (demand.h); never in this queue */
};

/* What a slot holds: content of consecutive clusters of one block, or that one is damaged. */
struct job {
    const struct block *block;
    uint64_t cluster;
    uint32_t n_clusters;
    enum job_origin origin;
    bool zero;        /* all zeros: the slot's buffer is not filled */
    bool own;         /* zeros in pages of their own: they are about to be written */
    bool in_place;    /* written into shared memory (in_place.h): nor is it then */
    int status;       /* 0, or -errno: the cluster could not be read, `cause` says why */
    uint64_t damaged; /* the cluster that could not be read */
    char cause[256];
    unsigned tries;    /* JOB_DEMAND: how many times, this one included */
    unsigned n_errors; /* of these, how many times the storage said that it can't be read */
};

/* Takes the message of why it could not be read. */
void job_set_cause(struct job *job, const struct error *e);

struct queue {
    struct pool slots; /* buffers of slot_bytes */
    uint64_t slot_bytes;
    struct job *jobs;  /* one per slot */
    struct ring first; /* those that go before the others */
    struct ring ready;
    unsigned wake_at; /* the server is woken for so many */
    int wake_fd;      /* an eventfd: the server polls it while it sleeps */
    atomic_bool sleeping;
    atomic_bool awaited; /* a fault waits for a job in place: they go first, and at once */
};

/* n_slots of slot_bytes each: all the memory it ever takes. 0 or -errno. */
int queue_init(struct queue *q, uint32_t n_slots, uint64_t slot_bytes);
void queue_free(struct queue *q);

/* Workers: a free slot, waiting for one; POOL_NONE once the queue is cancelled. */
uint32_t queue_take(struct queue *q);
static inline void *queue_buffer(struct queue *q, uint32_t slot)
{
    return pool_memory(&q->slots, slot);
}
/* Hands a slot with its job to the server. If it sleeps it is woken, at once for JOB_AHEAD, else
 * for several together: to wake it costs as much as to install two of them. */
void queue_submit(struct queue *q, uint32_t slot);
/* Wakes it for what is there: before a worker goes to sleep, or away. */
void queue_flush(struct queue *q);
/* Wakes it for something that is elsewhere, if it sleeps. Called after that is there. */
void queue_notify(struct queue *q);
/* Gives a slot back unused, or (server) when its job is installed. */
void queue_release(struct queue *q, uint32_t slot);
/* Lets all workers go. */
void queue_cancel(struct queue *q);

/* Server: the next job's slot, without waiting. False: none. */
bool queue_next(struct queue *q, uint32_t *slot);

/* Server: whether a fault waits for a job in place. */
void queue_await(struct queue *q, bool awaited);

/* Anybody: makes a sleeping server look again. */
void queue_wake(struct queue *q);

/*
 * The server's way to sleep without missing a submit: says that it will sleep, looks at everything
 * once more, polls wake_fd, says that it is awake.
 */
void queue_sleep_begin(struct queue *q);
void queue_sleep_end(struct queue *q);

/* The server, woken from any other sleep by wake_fd: else that would wake it from the next one. */
void queue_clear_wake(struct queue *q);

#endif
