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

/* A guest whose VMM somebody else has started, and all of whose servers know what they need from
 * their supervisor (listen/). */
struct supervisor_charge {
    pid_t vmm;
    int vmm_fd; /* a pidfd; the caller's */
    /* In each server's process: 0 all is in or the VMM has ended, -EBUSY (exit code 11) another
     * vmsnap serves it, else it could not. `e` is told by the last that tries. */
    int (*serve)(void *opaque, struct error *e);
    /* Between two waits; `connection` (-1: none) is polled. */
    int (*connection)(void *opaque);
    void (*heard)(void *opaque);
    /* No server is needed any more. */
    void (*complete)(void *opaque);
    void *opaque;
};

/*
 * Serves it until the VMM has ended; after SIGINT or SIGTERM only until all is in. No signal
 * reaches the VMM. Reports "takeover", and "exit" with an exit_status of null. o->detach and
 * o->pidfile must not be set.
 */
void supervisor_attend(const struct restore_options *o, const struct supervisor_charge *charge);

/* In a process forked by `heard`, which has nothing to do with that VM: closes what is the
 * supervisor's alone. */
void supervisor_forget(void);

#endif
