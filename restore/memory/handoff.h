/* handoff.h - leaves the guest's memory as if we had never been there: the process's own copy of
 * the userfaultfd is closed, and huge pages are put together again. */
#ifndef VMSNAP_RESTORE_HANDOFF_H
#define VMSNAP_RESTORE_HANDOFF_H

#include <stdbool.h>

#include "common/target/collapse.h"
#include "restore/memory/blocks.h"

#define HANDOFF_UFFD "anon_inode:[userfaultfd]"

/* Closes descriptor `fd` of the process, if that (still) is what /proc calls `link`. The
 * userfaultfd: after unregistering. */
int handoff_close_fd(const struct target *t, int fd, const char *link, int timeout_ms,
                     struct error *e);

/* Pages come in one by one, so that memory which would have had huge pages has none. */
struct handoff_collapse {
    const struct target *target;
    const struct image *img;
    const struct blocks *blocks;
    uint32_t block;
    uint64_t offset;
    bool block_wanted;
    struct collapse_run run;
};

void handoff_collapse_begin(struct handoff_collapse *c, const struct target *t,
                            const struct image *img, const struct blocks *blocks);

/* Collapses the next few huge pages, some milliseconds. False: nothing is left to do. */
bool handoff_collapse_step(struct handoff_collapse *c);

/* How far a server is with dropping the registration. */
struct handoff_release {
    uint32_t block;
    uint64_t offset;
};

/* Drops that of one more piece, and wakes who waits there. False: there was none left. */
bool handoff_release_piece(struct handoff_release *r, int uffd, const struct blocks *blocks);

#endif
