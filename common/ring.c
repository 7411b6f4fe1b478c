#include "common/ring.h"

#include <errno.h>
#include <stdlib.h>

int ring_init(struct ring *r, size_t capacity)
{
    size_t size = 2;
    while (size < capacity)
        size *= 2;
    r->cells = calloc(size, sizeof(*r->cells));
    if (!r->cells)
        return -ENOMEM;
    r->mask = size - 1;
    for (size_t i = 0; i < size; i++)
        atomic_init(&r->cells[i].turn, i);
    atomic_init(&r->head, 0);
    atomic_init(&r->tail, 0);
    return 0;
}

void ring_free(struct ring *r)
{
    free(r->cells);
    r->cells = NULL;
}

bool ring_push(struct ring *r, uint32_t value)
{
    size_t at = atomic_load_explicit(&r->tail, memory_order_relaxed);
    for (;;) {
        struct ring_cell *cell = &r->cells[at & r->mask];
        size_t turn = atomic_load_explicit(&cell->turn, memory_order_acquire);
        if (turn == at) {
            if (atomic_compare_exchange_weak_explicit(&r->tail, &at, at + 1, memory_order_relaxed,
                                                      memory_order_relaxed)) {
                cell->value = value;
                atomic_store_explicit(&cell->turn, at + 1, memory_order_release);
                return true;
            }
        } else if ((ptrdiff_t)(turn - at) < 0) {
            return false;
        } else {
            at = atomic_load_explicit(&r->tail, memory_order_relaxed);
        }
    }
}

bool ring_pop(struct ring *r, uint32_t *value)
{
    size_t at = atomic_load_explicit(&r->head, memory_order_relaxed);
    for (;;) {
        struct ring_cell *cell = &r->cells[at & r->mask];
        size_t turn = atomic_load_explicit(&cell->turn, memory_order_acquire);
        if (turn == at + 1) {
            if (atomic_compare_exchange_weak_explicit(&r->head, &at, at + 1, memory_order_relaxed,
                                                      memory_order_relaxed)) {
                *value = cell->value;
                atomic_store_explicit(&cell->turn, at + r->mask + 1, memory_order_release);
                return true;
            }
        } else if ((ptrdiff_t)(turn - (at + 1)) < 0) {
            return false;
        } else {
            at = atomic_load_explicit(&r->head, memory_order_relaxed);
        }
    }
}
