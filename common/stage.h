/*
 * stage.h - where the threads of a pipeline's stage spend their time, what for, and how much came
 * of it: what `-vv` tells at the end.
 *
 * A thread laps: it keeps the time at which its last piece of work or wait ended, and charges what
 * has passed since to one account, so that a piece costs one look at the clock (25 ns). Many
 * threads may share an account. Nothing here locks or waits, so the fault thread may use it.
 */
#ifndef VMSNAP_COMMON_STAGE_H
#define VMSNAP_COMMON_STAGE_H

#include <stdatomic.h>
#include <stdint.h>

#include "common/clock.h"

/* One thing that a stage does, or waits for. */
struct stage_time {
    atomic_uint_fast64_t ns;
    atomic_uint_fast64_t times;
    atomic_uint_fast64_t bytes;
};

static inline void stage_add(struct stage_time *t, uint64_t ns, uint64_t bytes)
{
    atomic_fetch_add_explicit(&t->ns, ns, memory_order_relaxed);
    atomic_fetch_add_explicit(&t->times, 1, memory_order_relaxed);
    if (bytes)
        atomic_fetch_add_explicit(&t->bytes, bytes, memory_order_relaxed);
}

/* Charges the time since `from`; returns now, where the next lap begins. */
static inline uint64_t stage_lap(struct stage_time *t, uint64_t from, uint64_t bytes)
{
    uint64_t now = clock_monotonic_ns();
    stage_add(t, now - from, bytes);
    return now;
}

static inline double stage_ms(const struct stage_time *t)
{
    return (double)atomic_load_explicit(&((struct stage_time *)t)->ns, memory_order_relaxed) / 1e6;
}

static inline uint64_t stage_times(const struct stage_time *t)
{
    return atomic_load_explicit(&((struct stage_time *)t)->times, memory_order_relaxed);
}

static inline uint64_t stage_bytes(const struct stage_time *t)
{
    return atomic_load_explicit(&((struct stage_time *)t)->bytes, memory_order_relaxed);
}

#endif
