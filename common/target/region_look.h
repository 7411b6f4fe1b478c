/*
 * region_look.h - reading many pages of a region at once: a look at what is there, then copies in
 * as few system calls as can be. What region_read() guarantees holds here too; it is what reads a
 * piece that does not go smoothly.
 */
#ifndef VMSNAP_COMMON_REGION_LOOK_H
#define VMSNAP_COMMON_REGION_LOOK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/target/region.h"

#define REGION_LOOK_PAGES 512u

/* What a look has found of a page. */
enum page_place {
    PAGE_ZERO,      /* a hole of private anonymous memory, or of the file behind it */
    PAGE_IN_MEMORY, /* to be read through the target */
    PAGE_IN_FILE,   /* to be read from the file */
    PAGE_IS_POISON,
};

/* One thread's; large: not for the stack. */
struct region_look {
    const struct region *region;
    const struct target *target;
    uint64_t offset; /* in the region, of the first page */
    unsigned n_pages;
    uint8_t place[REGION_LOOK_PAGES]; /* enum page_place */

    /* Private to region_look.c. */
    enum page_presence presence[REGION_LOOK_PAGES];
    uint64_t file_hole_from, file_hole_to; /* a hole of the file, offsets in the region */
    uint64_t hole_from, hole_to;           /* a hole of anonymous memory, addresses in the target */
    struct region_run {
        uint64_t at; /* in the target, or in the file */
        void *to;
        uint32_t bytes;
        unsigned piece;
    } runs[REGION_LOOK_PAGES];
    unsigned n_runs;
    struct iovec local[REGION_LOOK_PAGES], remote[REGION_LOOK_PAGES];
};

/* Begins with a region; nothing found before is kept. Call it again after an instant: holes are
 * remembered, which is right only while every page that comes to be is reported. */
void region_look_begin(struct region_look *k, const struct region *r, const struct target *t);

/* Looks at n_pages (at most REGION_LOOK_PAGES) at `offset`, without touching them. 0 or -errno. */
int region_look_at(struct region_look *k, uint64_t offset, unsigned n_pages);

/* A piece of what was looked at. */
struct region_piece {
    unsigned first_page, n_pages; /* n_pages: at most 64 */
    void *to;
    uint64_t poisoned; /* out: bit i, page i of the piece; its bytes are zeros */
    int err;           /* out: 0 or -errno */
};

/* Reads pieces that do not overlap, at most REGION_LOOK_PAGES pages in all. What has gone since the
 * look may block like target_read(). Each piece has its own result. */
void region_look_read(struct region_look *k, struct region_piece *pieces, unsigned n);

#endif
