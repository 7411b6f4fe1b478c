/*
 * install.h - puts pages where none is: the last step of every way in which memory comes back.
 *
 * One thread per userfaultfd reads its events and installs (the server's), so that no event is read
 * between the look at a discard mark and the ioctl: a page that the guest gave back can't return.
 * While an event waits to be read the kernel refuses the ioctl (EAGAIN); the caller then reads it
 * and comes again.
 */
#ifndef VMSNAP_RESTORE_INSTALL_H
#define VMSNAP_RESTORE_INSTALL_H

#include <stdbool.h>
#include <stdint.h>

#include "restore/memory/blocks.h"
#include "restore/memory/page_state.h"

struct installer {
    int uffd; /* not owned */
    const struct image *img;
    struct page_state *state;
    unsigned char *zeros; /* zeros_bytes of zeros, never written */
    uint64_t zeros_bytes;
    bool has_poison;
    bool whole_units; /* what is discarded is not told: no page of a unit before the others */
};

/* zeros_bytes: the largest unit. 0 or -ENOMEM. */
int installer_init(struct installer *ins, int uffd, const struct image *img,
                   struct page_state *state, uint64_t zeros_bytes);
void installer_free(struct installer *ins);

enum install_zero {
    INSTALL_ZERO_SHARED, /* the kernel's zero page where the memory allows it */
    INSTALL_ZERO_OWN,    /* pages of their own: a write is about to follow */
};

/*
 * Installs the pages of [offset, offset + len) of a block that are not discarded, wakes who waits
 * for them, and poisons those that the image says are poisoned. `data` is what they contain. Both
 * offset and len are multiples of the block's page size. Pages that are present already stay.
 * *present (may be NULL): bytes that were present. Returns 0 when all are settled; -EAGAIN: an
 * event must be read first, some may be in; -ENOENT: no page of it is ours (any longer); -ESRCH:
 * the process is gone; -ENOMEM, -ENOSPC, -EFAULT: no room (memory cgroup, tmpfs).
 *
 * -EBUSY: a worker is writing some of it (in_place.h), whose job comes; nothing was done.
 *
 * Of a block with a window the clusters must not be done, and are once their content is complete,
 * before any of it is mapped: -EAGAIN may come after that, and then the rest is mapped when it is
 * touched.
 */
int install_data(const struct installer *ins, const struct block *b, uint64_t offset,
                 const void *data, uint64_t len, uint64_t *present);

/* The same for a fault at `wanted`, a page of it: without a window that page comes first, and who
 * waits for it goes on while its neighbours follow (3 us of 40 that a fault takes). */
int install_around(const struct installer *ins, const struct block *b, uint64_t offset,
                   const void *data, uint64_t len, uint64_t wanted, uint64_t *present);

/* The same with zeros. */
int install_zeros(const struct installer *ins, const struct block *b, uint64_t offset, uint64_t len,
                  enum install_zero how, uint64_t *present);

/*
 * Poisons the pages of [offset, offset + len) that are neither discarded nor present, and wakes who
 * waits for them: they get a SIGBUS, a vCPU a machine check. For content that can't be had. Returns
 * as install_data() does; *poisoned: how many bytes. Needs kernel_features.poison.
 */
int install_poison(const struct installer *ins, const struct block *b, uint64_t offset,
                   uint64_t len, uint64_t *poisoned);

/* One page that the guest gave back and now touches: zeros, whatever the image says. With a window
 * also any page of a cluster that is done: what the file holds, or zeros. */
int install_discarded(const struct installer *ins, const struct block *b, uint64_t offset,
                      uint64_t *present);

/* What a worker has claimed and written in place (in_place.h): done, and mapped. Otherwise as
 * install_data(). */
int install_filled(const struct installer *ins, const struct block *b, uint64_t offset,
                   uint64_t len, uint64_t *present);

/*
 * For a successor, before it serves: what a worker had claimed and not brought to its end is
 * emptied and pending again, with what was discarded meanwhile. Nothing of it was ever mapped, so
 * that nothing of the guest's is lost. 0 or -errno.
 */
int install_forget_begun(const struct blocks *blocks, struct page_state *state);

#endif
