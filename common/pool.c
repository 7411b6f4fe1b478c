#include "common/pool.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "common/clock.h"
#include "common/futex.h"

static void push(struct pool *p, uint32_t buffer)
{
    uint64_t top = atomic_load_explicit(&p->top, memory_order_relaxed);
    uint64_t next;
    do {
        __atomic_store_n(&p->below[buffer], (uint32_t)top, __ATOMIC_RELAXED);
        next = ((top >> 32) + 1) << 32 | buffer;
    } while (!atomic_compare_exchange_weak_explicit(&p->top, &top, next, memory_order_release,
                                                    memory_order_relaxed));
}

/* The stack is known not to be empty: whoever counted a buffer as available has pushed it. */
static uint32_t pop(struct pool *p)
{
    uint64_t top = atomic_load_explicit(&p->top, memory_order_acquire);
    uint64_t next;
    do {
        /* May read what another taker is changing; the swap then fails on the turn. */
        uint32_t under = __atomic_load_n(&p->below[(uint32_t)top], __ATOMIC_RELAXED);
        next = ((top >> 32) + 1) << 32 | under;
    } while (!atomic_compare_exchange_weak_explicit(&p->top, &top, next, memory_order_acquire,
                                                    memory_order_acquire));
    return (uint32_t)top;
}

int pool_init(struct pool *p, uint32_t n_buffers, size_t buffer_bytes, uint32_t reserve)
{
    *p = (struct pool){.buffer_bytes = buffer_bytes, .n_buffers = n_buffers, .reserve = reserve};
    int populate = reserve ? MAP_POPULATE : 0;
    p->memory = mmap(NULL, (size_t)n_buffers * buffer_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | populate, -1, 0);
    if (p->memory == MAP_FAILED) {
        p->memory = NULL;
        return -ENOMEM;
    }
    /* A child of ours would make each first write to a buffer a copy of its page. */
    madvise(p->memory, (size_t)n_buffers * buffer_bytes, MADV_DONTFORK);
    p->below = calloc(n_buffers, sizeof(*p->below));
    if (!p->below) {
        pool_free(p);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < n_buffers; i++)
        push(p, i);
    atomic_init(&p->available, (int)n_buffers);
    atomic_init(&p->lowest, (int)n_buffers);
    return 0;
}

void pool_free(struct pool *p)
{
    if (p->memory)
        munmap(p->memory, (size_t)p->n_buffers * p->buffer_bytes);
    p->memory = NULL;
    free(p->below);
    p->below = NULL;
}

static void note_lowest(struct pool *p, int now)
{
    int lowest = atomic_load_explicit(&p->lowest, memory_order_relaxed);
    while (now < lowest && !atomic_compare_exchange_weak(&p->lowest, &lowest, now))
        ;
}

/* How many buffers must be left. */
static int floor_of(const struct pool *p, enum pool_class class)
{
    return class == POOL_SWEEP ? (int)p->reserve : class == POOL_AROUND ? (int)(p->reserve / 4) : 0;
}

uint32_t pool_try_take_many(struct pool *p, enum pool_class class, uint32_t *buffers, uint32_t max)
{
    int floor = floor_of(p, class);
    int have = atomic_load(&p->available), n;
    do {
        n = have - floor < (int)max ? have - floor : (int)max;
        if (n <= 0)
            return 0;
    } while (!atomic_compare_exchange_weak(&p->available, &have, have - n));
    note_lowest(p, have - n);
    for (int i = 0; i < n; i++)
        buffers[i] = pop(p);
    return (uint32_t)n;
}

uint32_t pool_try_take(struct pool *p, enum pool_class class)
{
    uint32_t buffer;
    return pool_try_take_many(p, class, &buffer, 1) ? buffer : POOL_NONE;
}

/* Sleeps until a buffer may have come back, at most `ms`. */
static uint32_t wait_for_return(struct pool *p, enum pool_class class, unsigned ms)
{
    unsigned seen = atomic_load(&p->returns);
    atomic_fetch_add(&p->waiters, 1);
    /* One may have come back before we counted as waiting. */
    uint32_t buffer = pool_try_take(p, class);
    if (buffer == POOL_NONE && !atomic_load(&p->cancelled))
        futex_wait(&p->returns, seen, ms);
    atomic_fetch_sub(&p->waiters, 1);
    return buffer;
}

uint32_t pool_take(struct pool *p, enum pool_class class)
{
    uint32_t buffer = pool_try_take(p, class);
    while (buffer == POOL_NONE && !atomic_load(&p->cancelled)) {
        buffer = wait_for_return(p, class, 1000);
        if (buffer == POOL_NONE)
            buffer = pool_try_take(p, class);
    }
    return buffer;
}

uint32_t pool_take_within(struct pool *p, enum pool_class class, unsigned ms)
{
    uint64_t deadline = clock_monotonic_ns() + (uint64_t)ms * 1000000u;
    uint32_t buffer = pool_try_take(p, class);
    for (int left; buffer == POOL_NONE && !atomic_load(&p->cancelled) &&
                   (left = clock_ms_until(deadline)) > 0;) {
        buffer = wait_for_return(p, class, (unsigned)left);
        if (buffer == POOL_NONE)
            buffer = pool_try_take(p, class);
    }
    return buffer;
}

void pool_put(struct pool *p, uint32_t buffer)
{
    push(p, buffer);
    atomic_fetch_add(&p->available, 1);
    if (atomic_load(&p->waiters) > 0) {
        atomic_fetch_add(&p->returns, 1);
        futex_wake(&p->returns,
                   INT_MAX); /* all: a sweep that wakes may not take what a fault may */
    }
}

bool pool_is_idle(const struct pool *p)
{
    return atomic_load(&((struct pool *)p)->available) == (int)p->n_buffers;
}

void pool_cancel(struct pool *p)
{
    atomic_store(&p->cancelled, true);
    atomic_fetch_add(&p->returns, 1);
    futex_wake(&p->returns, INT_MAX);
}

uint64_t pool_peak_bytes(const struct pool *p)
{
    int lowest = atomic_load(&((struct pool *)p)->lowest);
    return (uint64_t)(p->n_buffers - (uint32_t)lowest) * p->buffer_bytes;
}
