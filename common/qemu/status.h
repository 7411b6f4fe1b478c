/* status.h - the run state of a QEMU, and in which ones a snapshot makes sense. */
#ifndef VMSNAP_COMMON_QEMU_STATUS_H
#define VMSNAP_COMMON_QEMU_STATUS_H

#include "common/error.h"
#include "common/qmp.h"

#define QEMU_STATUS_BYTES 32

/* The state as QEMU names it (query-status); `status` has room for QEMU_STATUS_BYTES. */
int qemu_status_get(struct qmp *q, int timeout_ms, char *status, struct error *e);

/* 0 in "running", "paused" and "prelaunch" (started with -S): a guest that stands at an instant and
 * stays as it is until somebody continues it. Else refused by the state's name: exit code 11 where
 * another operation causes the state and ends it (a migration, a save), 10 otherwise. */
int qemu_status_check(const char *status, struct error *e);

#endif
