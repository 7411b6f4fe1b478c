/*
 * supervisor.h - the process that starts another server if one dies, and sees the VMM's end
 * through.
 */
#ifndef VMSNAP_RESTORE_SUPERVISOR_H
#define VMSNAP_RESTORE_SUPERVISOR_H

#include <stdbool.h>
#include <sys/types.h>

#include "restore/restore.h"

/*
 * Makes this process the supervisor, and forks the first server from it. Before any thread.
 *
 * True: in the server, which is to start a VMM from o->image_path. `word_fd` (-1: none) is where
 * the caller of a detached restore waits (detach.h); each keeps a copy.
 *
 * False: in the supervisor, when its time is over: *vmm_status and *rc with *e are what
 * restore_run() returns. It does not come back (exits with the server's status) where the server
 * has said all there is to say, and never when detached.
 *
 * If no process can be had there is a warning, and the server runs in this one.
 */
bool supervisor_begin(const struct restore_options *o, int word_fd, int *vmm_status, int *rc,
                      struct error *e);

/* resume_run() (resume.h) under a supervisor. Does not come back where the server has said all.
 * o->pidfile: an earlier restore's file, which must name the process, is removed at its end, which
 * is then waited for. */
int supervisor_resume(const struct restore_options *o, pid_t vmm, struct error *e);

#endif
