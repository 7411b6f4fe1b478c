/* presence.h - which pages of a block hold something already, before we came. */
#ifndef VMSNAP_RESTORE_PRESENCE_H
#define VMSNAP_RESTORE_PRESENCE_H

#include <stdbool.h>
#include <stdint.h>

#include "restore/memory/blocks.h"

#define PRESENCE_CHUNK_PAGES 512u

/*
 * Sets present[i] for each of `n_pages` (4 KiB, at most PRESENCE_CHUNK_PAGES) at `offset` of the
 * block: true when an access would find a page without a MISSING event. Nothing is touched.
 *  - private anonymous memory: the page table says it;
 *  - shared memory: the file says it (a page may lie in it unmapped);
 *  - a private mapping of a file: either.
 * hugetlbfs can't tell holes from data; there the page table has to do.
 */
int presence_look(const struct block *b, const struct target *t, uint64_t offset, size_t n_pages,
                  bool *present);

/* The pages of the chunk at `offset`. */
static inline size_t presence_chunk(const struct block *b, uint64_t offset)
{
    uint64_t left = (b->bytes - offset) / IMAGE_PAGE_BYTES;
    return left < PRESENCE_CHUNK_PAGES ? (size_t)left : PRESENCE_CHUNK_PAGES;
}

/* Where to look next: nothing is present in [offset, *next), whole clusters; *next is b->bytes when
 * there is nothing more. Much quicker than looking, where the kernel has PAGEMAP_SCAN. */
int presence_skip(const struct block *b, const struct target *t, uint64_t offset, uint64_t *next);

/* Counts the present pages of a block. */
int presence_count(const struct block *b, const struct target *t, uint64_t *n_pages);

/* Whether a file of hugetlbfs has more pages than presence_count() has found: allocated, perhaps
 * with content, but not in the page table. */
bool presence_is_hidden(const struct block *b, uint64_t n_pages);

#endif
