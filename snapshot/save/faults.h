/*
 * faults.h - a shard's fault thread: answers every userfault in its memory from the moment that is
 * registered until protection is gone.
 *
 * It does the least: read events, claim, copy out, unprotect and wake, hand the copy on. It makes
 * no system calls but read, poll, the copy (process_vm_readv, pread), the userfaultfd's ioctls and
 * futex; it never allocates, logs, compresses, writes, or waits for the VMM.
 */
#ifndef VMSNAP_SNAPSHOT_FAULTS_H
#define VMSNAP_SNAPSHOT_FAULTS_H

#include "common/error.h"
#include "snapshot/save/capture.h"

struct faults;

/* Starts the thread. Before faults_freeze() it only fills holes. */
int faults_start(struct faults **out, struct capture *c, struct shard *shard, struct error *e);

/*
 * The instant: called with the VM paused and its device state saved, before its memory is
 * protected. The fault thread itself changes phase, after a read that found nothing. Waits for it
 * at most timeout_ms: 0 or -ETIMEDOUT. Memory is protected when all shards' threads have.
 */
int faults_freeze(struct faults *f, int timeout_ms);

/* Ends the thread (after protection has been dropped) and adds its latencies to the capture's. 0,
 * or -ETIMEDOUT if it is stuck in the kernel; then it is left to the end of the process and *f
 * stays allocated. */
int faults_stop(struct faults *f);

#endif
