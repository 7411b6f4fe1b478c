/* foreign.h - whether the memory of the VMM that was started is its own, and nobody's before it:
 * what the command line could not tell. */
#ifndef VMSNAP_RESTORE_FOREIGN_H
#define VMSNAP_RESTORE_FOREIGN_H

#include "common/error.h"
#include "restore/memory/blocks.h"

/* The name of this hazard stands in restore/launch/refuse.c. */
#define FOREIGN_HAZARD "mem-path"

/* Exit code 14: a process beside the VMM and this one maps a file that a block lies in. It would
 * read holes for content, and what it writes there would be lost or taken for the guest's. */
int foreign_check_fellows(const struct blocks *blocks, const struct target *t, struct error *e);

/*
 * Exit code 14: the block lies in a file with a name that holds more data than a VMM writes before
 * its state is loaded. Memory that is only allocated (prealloc=on) holds zeros. Reads all that the
 * file has allocated.
 */
int foreign_check_data(const struct block *b, struct error *e);

#endif
