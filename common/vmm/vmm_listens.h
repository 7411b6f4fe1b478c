/* vmm_listens.h - which UNIX sockets a process listens on, and which process on a socket. */
#ifndef VMSNAP_COMMON_VMM_VMM_LISTENS_H
#define VMSNAP_COMMON_VMM_VMM_LISTENS_H

#include <jansson.h>

#include "common/error.h"
#include "common/target/target.h"

/* *out: an array of their paths, as the process gave them to bind(); new reference. Abstract names
 * and bytes that are not UTF-8 are left out. Reads /proc; not in the pause. */
int vmm_listens(json_t **out, const struct target *t, struct error *e);

/* The process at the other end of a connection: who called listen(). Exit code 10: it can't be
 * told, or it is a vmsnap that waits for VMs (restore --listen), and no VMM. */
int vmm_behind(int connection, pid_t *pid, struct error *e);

#endif
