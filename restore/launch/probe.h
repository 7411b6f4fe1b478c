/* probe.h - looks at sockets, ports and files that a command line names, without disturbing anyone
 * who uses them. */
#ifndef VMSNAP_RESTORE_PROBE_H
#define VMSNAP_RESTORE_PROBE_H

#include <stdbool.h>
#include <sys/stat.h>

/*
 * Whether a process holds this UNIX socket address. `base_fd`: what a relative path starts from (or
 * AT_FDCWD). 1, 0 or -errno. The owner notices nothing: a datagram socket that connects to a
 * stream socket's address gets EPROTOTYPE before anything reaches it, and ECONNREFUSED where the
 * file is a dead socket's (unix(7)).
 */
int probe_unix_held(int base_fd, const char *path, bool abstract);

/* Whether somebody listens on this TCP port: tries to bind it as QEMU would. 1, 0; an address that
 * is not ours or can't be resolved is 0 (QEMU will say so). */
int probe_tcp_held(const char *host, const char *port);

/* Whether another process maps this file: the number of the first one found, 0 none, or -errno. */
int probe_mapped_by(const struct stat *file);

#endif
