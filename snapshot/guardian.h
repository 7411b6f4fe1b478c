/*
 * guardian.h - the process that watches over a snapshot. The process that the user started becomes
 * the guardian; a child, the worker, does everything. While the worker has the VM paused, and while
 * memory is protected, nothing that happens to the worker may leave the guest paused or blocked:
 *
 *   worker killed           the kernel drops protection (the userfaultfd closes); if the VM was
 *                           paused by us the guardian resumes it; a temporary file is removed
 *   worker stopped          (SIGSTOP) continued at once
 *   worker starved          no heartbeat for max_stall (at least 1 s): killed, then as above
 *   guardian killed         the worker gets SIGTERM and gives up in order
 *
 * The worker is in a session of its own, so that a signal to the foreground group of a terminal
 * reaches the guardian alone, which passes SIGINT, SIGTERM and SIGUSR1 on; and so that it can give
 * way to the VM as a whole (thread_session_nice()).
 */
#ifndef VMSNAP_SNAPSHOT_GUARDIAN_H
#define VMSNAP_SNAPSHOT_GUARDIAN_H

#include <jansson.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "common/error.h"

/* What the worker tells the guardian, in memory that both share. */
struct guardian_board {
    atomic_uint beat;          /* the worker counts it up while it lives */
    atomic_bool paused;        /* the VM is (about to be) stopped by us: resume it if we die */
    atomic_bool paused_before; /* it was not running when we came */
    atomic_bool touched;       /* it was (or was found) stopped, its memory protected; stays set */
    atomic_bool protected;     /* memory is protected: no terminal stop, watch the heartbeat */
    atomic_bool unmerged;      /* KSM was switched off for the VM's memory */
    atomic_bool finishing;     /* the guest is free of us: the worker may simply be killed */
    atomic_bool published;     /* the image has its final name */
    char temporary[PATH_MAX];  /* file to remove if the worker dies; "" for none */
    /* Why the worker gives up, for the case that it dies before it is through with that: in `told`
     * once `has_told` is set. */
    struct error told;
    atomic_bool has_told;
};

struct guardian {
    struct guardian_board *board;
    int max_stall_ms;
    void *opaque;
    /* The worker: runs in the child. *summary is a new reference. */
    int (*work)(void *opaque, struct guardian_board *board, json_t **summary, struct error *e);
    /* In the guardian, when the worker has died with the VM paused by us. 0: it runs; 1: it had not
     * been stopped yet; -errno. */
    int (*resume)(void *opaque, struct error *e);
    /* In the guardian, when it has died with KSM switched off. */
    int (*remerge)(void *opaque, struct error *e);
};

/* Forks and guards until the worker has ended. Must be called before any thread is started.
 * Returns what work() returned, with its error and summary; or the worker's death as an error. */
int guardian_run(struct guardian *g, json_t **summary, struct error *e);

#endif
