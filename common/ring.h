/*
 * ring.h - a bounded queue of 32-bit numbers for many producers and many consumers, without locks
 * (D. Vyukov's bounded MPMC queue: each cell carries the turn at which it may be written or read).
 * Neither call ever waits, so the fault thread may use both.
 */
#ifndef VMSNAP_COMMON_RING_H
#define VMSNAP_COMMON_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ring_cell {
    atomic_size_t turn;
    uint32_t value;
};

struct ring {
    struct ring_cell *cells;
    size_t mask;
    _Alignas(64) atomic_size_t head; /* next to be read */
    _Alignas(64) atomic_size_t tail; /* next to be written */
};

/* Makes room for at least `capacity` numbers. 0 or -ENOMEM. Freed by ring_free(). */
int ring_init(struct ring *r, size_t capacity);
void ring_free(struct ring *r);

/* False: full, or the place that is next was taken by a thread that has not yet finished with it
 * (preempted between its two stores): with less than `capacity` in it this passes by itself. */
bool ring_push(struct ring *r, uint32_t value);

/* False: empty, or what is next is just being pushed. */
bool ring_pop(struct ring *r, uint32_t *value);

#endif
