/* theirs.h - a userfaultfd that the VMM has made and registered itself: whether it is what it is
 * said to be, and where to find it again. */
#ifndef VMSNAP_RESTORE_THEIRS_H
#define VMSNAP_RESTORE_THEIRS_H

#include <stdbool.h>

#include "common/error.h"
#include "common/target/target.h"
#include "restore/memory/blocks.h"

/*
 * Whether `fd` is a userfaultfd of this process's, with all blocks registered for missing pages,
 * which must be private memory with pages of the size that the blocks say, none of them present.
 * Changes nothing but that reading it does not block any more. Exit code 10, 15: no; what is wrong
 * is said. Main thread; a fraction of a millisecond.
 */
int theirs_check(int fd, const struct target *t, const struct blocks *blocks, struct error *e);

/* Whether it has events for what is given back (UFFD_FEATURE_EVENT_REMOVE): the VMM chose. */
bool theirs_tells_discards(int fd);

/* A copy of it, taken from the process: the one that the end of a block is registered with, which
 * is what a release leaves to the last. -errno. */
int theirs_find(const struct target *t, const struct blocks *blocks);

#endif
