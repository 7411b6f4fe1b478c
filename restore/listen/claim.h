/* claim.h - the same memory is served once: what a VMM hands over twice, perhaps at the same time,
 * must not get a second server, which would not know what the first was told was given back. */
#ifndef VMSNAP_RESTORE_LISTEN_CLAIM_H
#define VMSNAP_RESTORE_LISTEN_CLAIM_H

#include <sys/types.h>

#include "common/error.h"
#include "restore/memory/blocks.h"

/* What the listener and all VMs' processes share: a descriptor that they inherit; -errno. */
int claim_file(void);

/*
 * Claims the blocks of process `pid`. *fd is the claim: it lasts until the last process that
 * inherits it has closed it or ended. -EALREADY, exit code 11: some of it is claimed, still after a
 * second (a server that has brought all in may be ending just now).
 */
int claim_take(int file, pid_t pid, const struct blocks *blocks, int *fd, struct error *e);

#endif
