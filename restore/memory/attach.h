/*
 * attach.h - makes the new process's memory ours to fill: whatever is present already is thrown
 * away or overwritten with the image's content, and all that is absent is registered, so that its
 * first touch waits for us.
 */
#ifndef VMSNAP_RESTORE_ATTACH_H
#define VMSNAP_RESTORE_ATTACH_H

#include "restore/memory/blocks.h"
#include "restore/memory/page_state.h"

struct attach {
    const struct target *target;
    const struct image *img;
    const struct blocks *blocks;
    struct page_state *state; /* clusters that are written here are marked done */
    int timeout_ms;           /* for each injection */
    int uffd;                 /* out: ours */
    int target_fd;            /* out: the number of the process's own copy */
};

/* What can be refused before anything is started: 0, or exit code 12 (the image holds poisoned
 * pages and this kernel can't poison). */
int attach_check_kernel(const struct image *img, struct error *e);

/*
 * The guest must not run yet, and nothing may depend on its memory's content. Main thread; takes
 * milliseconds, more where much memory was preallocated. On failure nothing of ours is left but the
 * process's copy of the userfaultfd: it must be ended.
 */
int attach_memory(struct attach *a, struct error *e);

#endif
