/*
 * balloon.h - guest memory that is given back to the host and taken again, as a balloon does it. A
 * part of RAM behind the shares belongs to it, a ring of pages: the VMM discards the next ones and
 * says so in the guest's state (guest.h); vCPU 0 then reads each, must find zeros, and writes it.
 * At every moment it is certain what each page holds, so x-check sees a page that is stale.
 */
#ifndef MINIVM_BALLOON_H
#define MINIVM_BALLOON_H

#include "vm.h"

struct balloon_pages {
    uint64_t pages, discarded, reused;
};

/* All in the main thread, which touches guest memory for it. */

struct balloon_pages balloon_look(const struct vm *vm);

/*
 * Discards up to `pages` of a VM that runs, in ranges of 1 to 16 pages: as many as the guest has
 * taken back. Returns once the host is done, which with EVENT_REMOVE is when the event was read.
 * How many; -errno.
 */
int64_t balloon_discard(struct vm *vm, uint64_t pages);

/* What is due at vm->o.balloon_rate, after the VM has run for a while. Milliseconds until it is
 * to be called again, -1 for never. */
int balloon_turn(struct vm *vm);

#endif
