/* vm_status.h - the run state of a VM (query-status), and in which ones a snapshot makes sense. */
#ifndef VMSNAP_COMMON_VM_STATUS_H
#define VMSNAP_COMMON_VM_STATUS_H

#include "common/error.h"
#include "common/qmp.h"

#define VM_STATUS_BYTES 32

/* The state as the VMM names it (query-status); `status` has room for VM_STATUS_BYTES. */
int vm_status_get(struct qmp *q, int timeout_ms, char *status, struct error *e);

/* 0 in "running", "paused" and "prelaunch" (started with -S): a guest that stands at an instant and
 * stays as it is until somebody continues it. Else refused by the state's name: exit code 11 where
 * another operation causes the state and ends it (a migration, a save), 10 otherwise. */
int vm_status_check(const char *status, struct error *e);

#endif
