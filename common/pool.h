/*
 * pool.h - the page buffers: one block of memory, allocated and touched once, never grown. This is
 * the hard cap. A share of it is kept for faults: the sweep can't take that, so that a writer in
 * the guest waits for the sink only when the sink is truly behind.
 */
#ifndef VMSNAP_COMMON_POOL_H
#define VMSNAP_COMMON_POOL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define POOL_NONE UINT32_MAX

struct pool {
    unsigned char *memory;
    size_t buffer_bytes;
    uint32_t n_buffers;
    uint32_t reserve; /* buffers that only faults may take */
    /* Idle buffers: a lock-free stack, so that the one used last, still in the cache, is used
     * next, and a taker never waits for a giver that was preempted half-way. */
    atomic_uint_fast64_t top; /* turn << 32 | buffer; the turn keeps a stale swap from passing */
    uint32_t *below;          /* by buffer: the one under it */
    atomic_int available;     /* buffers on the stack that nobody has been promised */
    atomic_int lowest;        /* the least that was ever available */
    atomic_uint returns;      /* futex word: counts returns while someone waits */
    atomic_int waiters;
    atomic_bool cancelled;
};

enum pool_class {
    POOL_SWEEP,  /* leaves the reserve alone */
    POOL_AROUND, /* a fault's neighbours: leaves a quarter of the reserve */
    POOL_FAULT,  /* takes whatever there is */
};

/* 0 or -ENOMEM. buffer_bytes: a multiple of 4096. With a reserve all memory is there from the
 * start; without one it comes when it is first used, since no fault waits for it. */
int pool_init(struct pool *p, uint32_t n_buffers, size_t buffer_bytes, uint32_t reserve);
void pool_free(struct pool *p);

/* Takes a buffer without waiting: its number, or POOL_NONE. Any thread. */
uint32_t pool_try_take(struct pool *p, enum pool_class class);

/* Takes up to `max` buffers without waiting; returns how many. Any thread. */
uint32_t pool_try_take_many(struct pool *p, enum pool_class class, uint32_t *buffers, uint32_t max);

/* Takes a buffer, waiting for one. POOL_NONE only after pool_cancel(). Any thread. */
uint32_t pool_take(struct pool *p, enum pool_class class);

/* The same for at most about `ms` milliseconds: POOL_NONE after that, too. */
uint32_t pool_take_within(struct pool *p, enum pool_class class, unsigned ms);

void pool_put(struct pool *p, uint32_t buffer);

/* True when nobody holds a buffer. */
bool pool_is_idle(const struct pool *p);

/* Wakes all waiters, and lets nobody wait any more. Any thread. */
void pool_cancel(struct pool *p);

static inline bool pool_is_cancelled(const struct pool *p)
{
    return atomic_load(&((struct pool *)p)->cancelled);
}

/* Faults have taken half of what is kept for them: the guest writes faster than buffers come back,
 * and its writers are about to wait. */
static inline bool pool_is_short(const struct pool *p)
{
    return atomic_load(&((struct pool *)p)->available) < (int)p->reserve / 2;
}

/* The most bytes that were ever in use. */
uint64_t pool_peak_bytes(const struct pool *p);

static inline void *pool_memory(const struct pool *p, uint32_t buffer)
{
    return p->memory + (size_t)buffer * p->buffer_bytes;
}

#endif
