/* plan.h - the command line of a QEMU: less what can't be replayed, plus what a restore needs. */
#ifndef VMSNAP_RESTORE_QEMU_PLAN_H
#define VMSNAP_RESTORE_QEMU_PLAN_H

#include "restore/launch/relaunch.h"

/* As struct vmm_kind has them. Exit codes: 13 (the recorded line makes no sense), 15 (the given
 * line asks for another machine type). */
int qemu_plan(struct relaunch *out, const json_t *description, char *const *vmm_argv,
              struct error *e);

/* -S, -incoming defer, and a QMP connection to `socket_path`. */
int qemu_add_private(struct relaunch *l, const char *socket_path, struct error *e);

#endif
