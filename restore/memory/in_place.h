/*
 * in_place.h - the fill workers' side of shared memory with a window (window.h): a worker claims
 * clusters, writes them into the file and hands the job to the server, which marks them as done and
 * maps them. While they are claimed nobody else touches them, and faults in them wait.
 *
 * Pages of 4 KiB are decoded into the job's buffer and written with pwrite(), a huge page is
 * decoded straight into the window. (Straight into small pages costs more than it saves: each is
 * cleared, mapped and unmapped for it. docs/performance.md has the figures.)
 *
 * Only clusters are claimed of which nothing is discarded: a discarded page may be the guest's
 * again. What is discarded after the claim was written for nothing, and is punched out of the file
 * once the worker is through: by the server, or by the worker that gives its claim back.
 */
#ifndef VMSNAP_RESTORE_IN_PLACE_H
#define VMSNAP_RESTORE_IN_PLACE_H

#include <stdbool.h>
#include <stdint.h>

#include "restore/memory/blocks.h"
#include "restore/memory/page_state.h"

/* Whether a worker decodes straight into this block's window. */
static inline bool in_place_decodes(const struct block *b)
{
    return b->window && b->unit_bytes > IMAGE_CLUSTER_BYTES;
}

/* Claims [cluster, cluster + n): all of them, or none (false). Of a huge page it is the whole unit.
 * Any thread. */
bool in_place_claim(struct page_state *s, const struct block *b, uint64_t cluster, uint32_t n);

/* Claims and writes. False: it has to go through the server, nothing is claimed. */
bool in_place_write(struct page_state *s, const struct block *b, uint64_t cluster, uint32_t n,
                    const void *data);

/* Makes them pending again. They may have been written to. */
void in_place_give_back(struct page_state *s, const struct block *b, uint64_t cluster, uint32_t n);

/* Punches out what was discarded of one unit that is claimed. 0 or -errno. */
int in_place_empty_discarded(const struct page_state *s, const struct block *b, uint64_t cluster);

#endif
