/*
 * page_state.h - what has become of each page of the guest: one byte per cluster.
 *
 * state of a cluster | what the process has there            | leaves it
 * -------------------+---------------------------------------+-----------------------------------
 * pending            | no page, but those already present    | all its pages installed: done
 * filling            | no page; a worker writes the content  | the server takes the worker's job:
 *                    | into the file behind shared memory    | done; a successor empties the file
 *                    |                                       | there: pending
 * writing            | as pending; the server writes there   | the server: done, or (no room)
 *                    |                                       | pending; a successor: pending
 * done               | every page, but discarded ones; of    | nobody: the guest owns it
 *                    | shared memory in the file at least    |
 * damaged            | as pending; its content can't be read | nobody: a fault in it waits
 * gone               | unmapped by the process               | nobody
 * poisoned           | a poison marker per page, but those   | nobody
 *                    | already present and discarded ones    |
 *
 * Beside the state stands a bit per page: discarded. The guest gave the page back (a balloon, free
 * page reporting), so that its content is zero from then on: it is never installed again.
 *
 * The server's thread writes; before it starts, the thread that attaches. A worker changes one
 * thing alone: it claims a pending cluster of shared memory none of whose pages is discarded
 * (filling), and may give it back. So the server claims there too, before it writes (writing). Of
 * a huge page the first cluster speaks for both. Others may look, to save themselves work.
 */
#ifndef VMSNAP_RESTORE_PAGE_STATE_H
#define VMSNAP_RESTORE_PAGE_STATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/image/format.h"

enum cluster_state {
    CLUSTER_PENDING = 0,
    CLUSTER_DONE = 1,
    CLUSTER_DAMAGED = 2,
    CLUSTER_GONE = 3,
    CLUSTER_FILLING = 4,
    CLUSTER_WRITING = 5,
    CLUSTER_POISONED = 6,
};

struct page_state {
    _Atomic uint8_t *bytes; /* bits 0-2: enum cluster_state; bits 4-7: discarded pages */
    uint64_t n_clusters;
    atomic_bool ends; /* workers give nothing back any more that can't be: a successor does that */
};

/* Uses `n_clusters` bytes at `bytes` as they are, the caller's: zeros mean all pending, nothing
 * discarded; else it is what a server before us left. */
void page_state_map(struct page_state *s, void *bytes, uint64_t n_clusters);
/* What was damaged is to be tried again: the image may have been repaired. */
void page_state_forgive(struct page_state *s);

enum cluster_state page_state_get(const struct page_state *s, uint64_t cluster);
void page_state_set(struct page_state *s, uint64_t cluster, enum cluster_state state);

/* -> damaged. False: it is filling, and what the worker finds counts. The server's thread. */
bool page_state_damage(struct page_state *s, uint64_t cluster);

/* pending and nothing discarded -> filling. False: it is something else. Any thread. */
bool page_state_claim(struct page_state *s, uint64_t cluster);
/* pending -> writing, whatever is discarded; what is neither pending nor filling is left alone.
 * False: it is filling, a worker was faster. The server's thread. */
bool page_state_claim_for_server(struct page_state *s, uint64_t cluster);
/* filling -> pending. False: pages were discarded since the claim (page_state_discarded()), and
 * what was written of them has to go first. */
bool page_state_unclaim(struct page_state *s, uint64_t cluster, unsigned discarded);

/* Bit i: page i of the cluster is discarded. */
unsigned page_state_discarded(const struct page_state *s, uint64_t cluster);

/* Marks `n_pages` pages from page `first` (4 KiB, counted from cluster 0) on as discarded. */
void page_state_discard(struct page_state *s, uint64_t first, uint64_t n_pages);

#endif
