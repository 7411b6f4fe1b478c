/*
 * window.h - our own mapping of a block of shared memory. What is written through it lies in the
 * file before the guest can see it: the guest's mapping is registered MISSING|MINOR, so that a page
 * stays out of its page table until UFFDIO_CONTINUE puts it there.
 *
 * Memory is had by MADV_POPULATE_WRITE, which says when there is none (tmpfs or the pool of huge
 * pages is exhausted). Should a page go under our hands nevertheless (the file was cut, hardware
 * poison), the access gets SIGBUS, which comes out of window_guard() as an error.
 */
#ifndef VMSNAP_RESTORE_WINDOW_H
#define VMSNAP_RESTORE_WINDOW_H

#include <stdbool.h>
#include <stdint.h>

#include "common/target/target.h"
#include "restore/memory/blocks.h"

/*
 * Opens windows on all shared blocks that can be filled through one. The others go without, and are
 * filled by UFFDIO_COPY:
 *  - the kernel has no minor faults for that memory;
 *  - we may not write the file (opened for reading only, sealed);
 *  - the process is in another control group: what we allocate is charged to ours.
 */
void window_open_all(struct blocks *blocks, const struct target *t);

/*
 * The same for a successor: the blocks that had a window (`had`, by the block's hva) must get one
 * again, whatever the control group, since their memory is registered for it. -errno: one can't.
 */
int window_reopen(struct block *b, const struct target *t);

/* Closes those that are open. Nobody may use them any more. */
void window_close_all(struct blocks *blocks);

/* Has the memory of [offset, offset + len) there: -ENOMEM, or -EFAULT (no room, or the file is
 * shorter). */
int window_populate(const struct block *b, uint64_t offset, uint64_t len);

/* Runs `run`, which writes to windows: its result, or -EFAULT if memory went away under it, at
 * whatever place it was. It must hold no lock and own nothing then. Any thread. */
int window_guard(int (*run)(void *opaque), void *opaque);

/* Populates and writes. -ENOMEM, -ENOSPC: as above. */
int window_write(const struct block *b, uint64_t offset, const void *data, uint64_t len);

/* Lets go of our page table entries, not of the content: it is not counted as ours any more. */
void window_forget(const struct block *b, uint64_t offset, uint64_t len);

/* Punches a hole in the file: the guest's page, if it has one, goes as well. 0 or -errno. */
int window_empty(const struct block *b, uint64_t offset, uint64_t len);

static inline unsigned char *window_at(const struct block *b, uint64_t offset)
{
    return b->window + offset;
}

#endif
