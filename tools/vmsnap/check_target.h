/* check_target.h - what `vmsnap check` says of a running VM. Changes nothing in it. */
#ifndef VMSNAP_TOOLS_CHECK_TARGET_H
#define VMSNAP_TOOLS_CHECK_TARGET_H

#include "tools/vmsnap/check_list.h"

/* A QEMU behind a QMP socket, or another VMM behind its control socket (docs/vmm.md); `pid` > 0:
 * the process, where it is not the one that listens. */
void check_vm(struct check_list *list, const char *qmp_path, int pid, int timeout_ms);

/* A process of which only its pid is known. */
void check_process(struct check_list *list, int pid);

/* A Firecracker behind its API socket; `maps` as struct source_firecracker_options has them. */
void check_firecracker(struct check_list *list, const char *api_path, const char *const *maps,
                       int pid, int timeout_ms);

#endif
