/*
 * sweep.h - the order of the background pass: all blocks from their beginnings to their ends, in
 * positions of some clusters each, so that several workers can go through them together.
 */
#ifndef VMSNAP_RESTORE_SWEEP_H
#define VMSNAP_RESTORE_SWEEP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "restore/memory/blocks.h"

struct sweep {
    const struct blocks *blocks;
    uint64_t run;         /* the least clusters of a position */
    atomic_ullong cursor; /* counted over all blocks */
    uint64_t n_positions;
};

void sweep_init(struct sweep *s, const struct blocks *blocks, uint64_t run);

/* The next position: n clusters of `block` from *first on. False: all are taken. Any thread. */
bool sweep_take(struct sweep *s, const struct block **block, uint64_t *first, uint64_t *n);

#endif
