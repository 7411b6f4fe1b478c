/*
 * disk_sync.h - writes back what the VM's disk files have in the host's page cache, from outside,
 * just before the VM is stopped: its `stop` flushes all disks with the vCPUs halted, so what is
 * still dirty then is part of the pause (2003 ms were measured for one write to a disk that takes
 * 2 s).
 *
 * A process of its own does it, since fdatasync() can't be interrupted: one that sleeps in a hung
 * file system must not be one that holds the guest's memory.
 */
#ifndef VMSNAP_SNAPSHOT_DISK_SYNC_H
#define VMSNAP_SNAPSHOT_DISK_SYNC_H

#include <stdbool.h>
#include <sys/types.h>

#include "common/error.h"
#include "common/target/target.h"

struct disk_sync {
    int socket;       /* -1: the VM has no disk file, nothing runs */
    int pidfd;        /* of the process */
    unsigned n_files; /* regular files and block devices that the VM has open for writing */
    bool unanswered;  /* it was asked, and may sleep in a file system */
};

/* Finds the files (by the VM's descriptors; memory in tmpfs or hugetlbfs is none) and forks the
 * process, which keeps nothing else of ours: to be called before there is a userfaultfd. */
int disk_sync_start(struct disk_sync *d, const struct target *t, struct error *e);

/*
 * Syncs all files, again while a round takes long (much was written meanwhile), three times at
 * most. Waits up to timeout_ms for each round: exit code 17 after that, since `stop` would hang as
 * well. A file that can't be synced is logged, and left to `stop`. Calls tick(opaque) every few
 * milliseconds: not 0 ends the wait, with that result (*e is not set). Main thread.
 */
int disk_sync_run(struct disk_sync *d, int timeout_ms, int (*tick)(void *opaque), void *opaque,
                  struct error *e);

/* Lets the process end; one that hangs in a file system does so when that answers. Any state that
 * disk_sync_start() or a zeroed struct with socket -1 has left. */
void disk_sync_stop(struct disk_sync *d);

#endif
