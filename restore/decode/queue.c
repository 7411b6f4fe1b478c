#include "restore/decode/queue.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define WAKE_JOBS 8u

void job_set_cause(struct job *job, const struct error *e)
{
    strncpy(job->cause, e->message, sizeof(job->cause) - 1);
    job->cause[sizeof(job->cause) - 1] = '\0';
}

int queue_init(struct queue *q, uint32_t n_slots, uint64_t slot_bytes)
{
    *q = (struct queue){.slot_bytes = slot_bytes, .wake_fd = -1};
    q->jobs = calloc(n_slots, sizeof(*q->jobs));
    if (!q->jobs)
        return -ENOMEM;
    int rc = pool_init(&q->slots, n_slots, slot_bytes, 0);
    if (rc == 0)
        rc = ring_init(&q->first, n_slots);
    if (rc == 0)
        rc = ring_init(&q->ready, n_slots);
    /* No more than half: the other half must not wait for it. */
    q->wake_at = n_slots / 2 < WAKE_JOBS ? n_slots / 2 : WAKE_JOBS;
    if (rc == 0) {
        q->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        rc = q->wake_fd < 0 ? -errno : 0;
    }
    if (rc)
        queue_free(q);
    return rc;
}

void queue_free(struct queue *q)
{
    if (q->wake_fd >= 0)
        close(q->wake_fd);
    q->wake_fd = -1;
    ring_free(&q->first);
    ring_free(&q->ready);
    pool_free(&q->slots);
    free(q->jobs);
    q->jobs = NULL;
}

uint32_t queue_take(struct queue *q)
{
    return pool_take(&q->slots, POOL_FAULT);
}

void queue_release(struct queue *q, uint32_t slot)
{
    pool_put(&q->slots, slot);
}

void queue_cancel(struct queue *q)
{
    pool_cancel(&q->slots);
}

void queue_wake(struct queue *q)
{
    uint64_t one = 1;
    /* Fails only when the counter is full: then it wakes already. */
    ssize_t n = write(q->wake_fd, &one, sizeof(one));
    (void)n;
}

static size_t n_ready(struct queue *q)
{
    /* The head first: it may only move on, and so the difference is never below what is there. */
    size_t head = atomic_load_explicit(&q->ready.head, memory_order_relaxed);
    return atomic_load_explicit(&q->ready.tail, memory_order_relaxed) - head;
}

void queue_submit(struct queue *q, uint32_t slot)
{
    const struct job *job = &q->jobs[slot];
    bool first = job->origin == JOB_AHEAD || (job->in_place && atomic_load(&q->awaited));
    ring_push(first ? &q->first : &q->ready, slot); /* can't be full: a place for every slot */
    /* Orders the push before the look; pairs with the fence in queue_sleep_begin(). */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&q->sleeping, memory_order_relaxed) &&
        (first || atomic_load(&q->awaited) || n_ready(q) >= q->wake_at))
        queue_wake(q);
}

void queue_await(struct queue *q, bool awaited)
{
    atomic_store(&q->awaited, awaited);
}

void queue_flush(struct queue *q)
{
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&q->sleeping, memory_order_relaxed) && n_ready(q) > 0)
        queue_wake(q);
}

void queue_notify(struct queue *q)
{
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&q->sleeping, memory_order_relaxed))
        queue_wake(q);
}

bool queue_next(struct queue *q, uint32_t *slot)
{
    return ring_pop(&q->first, slot) || ring_pop(&q->ready, slot);
}

void queue_sleep_begin(struct queue *q)
{
    atomic_store_explicit(&q->sleeping, true, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
}

void queue_sleep_end(struct queue *q)
{
    atomic_store_explicit(&q->sleeping, false, memory_order_relaxed);
    queue_clear_wake(q);
}

void queue_clear_wake(struct queue *q)
{
    uint64_t n;
    ssize_t got = read(q->wake_fd, &n, sizeof(n)); /* EAGAIN: nobody woke us */
    (void)got;
}
