/*
 * collapse_look.h - how 2 MiB of another process are mapped. PAGEMAP_SCAN says it (Linux 6.7).
 * Before that pagemap's page frame numbers do: memory that lies in one huge page, whichever way it
 * is mapped, has 512 of them in a row, the first a multiple of 512, and /proc/kpageflags calls it a
 * huge page.
 */
#ifndef VMSNAP_COMMON_COLLAPSE_LOOK_H
#define VMSNAP_COMMON_COLLAPSE_LOOK_H

#include <stdbool.h>
#include <stdint.h>

#include "common/target/region.h"

enum collapse_state {
    COLLAPSE_HUGE,  /* one huge page; without PAGEMAP_SCAN it may be mapped in pieces */
    COLLAPSE_WHOLE, /* small pages, all there: collapsing makes nothing real that was not */
    COLLAPSE_HOLES, /* not all of it is there, or part of it is the zero page or swapped out */
};

/* What is needed to look, by one thread. */
struct collapse_look {
    const struct target *target;
    int kpageflags_fd; /* -1: not needed, there is PAGEMAP_SCAN */
    const struct region *file_of;
    uint64_t file_from, file_to; /* no hole in that part of its file, when last asked, */
    uint64_t file_ns;            /* which was then */
};

/* 0 or -errno: the kernel can't tell (EACCES: not root; ENOENT: built without). */
int collapse_look_open(struct collapse_look *k, const struct target *t);
void collapse_look_close(struct collapse_look *k);

/* What is known of a file is asked anew; after 50 ms it is anyway. */
void collapse_look_forget(struct collapse_look *k);

/*
 * The 2 MiB at `hva`, aligned, in a region of 4 KiB pages of the target, private anonymous or
 * shared. Nothing is touched. Of shared memory the file decides what is there, for taking a mapping
 * of it to pieces empties the page table. 0 or -errno.
 */
int collapse_look_at(struct collapse_look *k, const struct region *r, uint64_t hva,
                     enum collapse_state *state);

/* Only whether they are COLLAPSE_HUGE. */
int collapse_look_huge(const struct collapse_look *k, uint64_t hva, bool *huge);

#endif
