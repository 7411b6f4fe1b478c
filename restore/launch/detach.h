/* detach.h - the server in a process and session of its own, and the word between it and the caller
 * that waits for "the guest runs". */
#ifndef VMSNAP_RESTORE_DETACH_H
#define VMSNAP_RESTORE_DETACH_H

#include <jansson.h>
#include <stdbool.h>

#include "common/error.h"

/*
 * Forks. In the server (true): *fd is where it says how it went. In the caller (false): waits for
 * that; *running is the object (new reference) or NULL with *rc = -errno and *e filled. Before any
 * thread.
 */
bool detach_fork(int *fd, json_t **running, int *rc, struct error *e);

/* The server: the guest runs. Closes fd and lets go of the terminal. -EPIPE:
 * nobody waits any more. */
int detach_tell_running(int fd, const json_t *running);

/* stdin, stdout and stderr are /dev/null from now on. */
void detach_leave_terminal(void);

/* The server: it failed. Closes fd. */
void detach_tell_error(int fd, const struct error *e);

#endif
