/* listen.h - `vmsnap restore --listen`: serves the memory of every VMM that connects to a socket
 * and hands its memory over as Firecracker does. */
#ifndef VMSNAP_RESTORE_LISTEN_LISTEN_H
#define VMSNAP_RESTORE_LISTEN_LISTEN_H

#include "restore/restore.h"

/*
 * Listens until SIGINT, SIGTERM, SIGHUP or SIGQUIT; from the first of them on only for the guests
 * that are served already, which a second one leaves to their servers. Of the options: image_path,
 * prefetch_hot, learn (the first VM's), no_fill, bytes_per_s and n_threads (of each VM), detach,
 * pidfile (ours), poison_damage, timeout_ms, and the calls: `report` gets "listening", and
 * "summary" with `vms` at the end; of each VM, in a process of its own, what a takeover gets, and
 * "exit". `detached` is called in the process that listens then.
 *
 * Before any thread. 0, or exit code 130 or 143 after a second signal; 14 when somebody listens
 * there already; 12, 13, 15, 1.
 */
int listen_run(const struct restore_options *o, const char *socket_path, struct error *e);

#endif
