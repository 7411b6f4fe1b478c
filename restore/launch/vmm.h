/*
 * vmm.h - the VMM that we start: our child, or a descendant of it behind a wrapper, known by the
 * private socket that it connects to.
 */
#ifndef VMSNAP_RESTORE_VMM_H
#define VMSNAP_RESTORE_VMM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"
#include "common/target/target.h"
#include "restore/launch/private_dir.h"
#include "restore/launch/relaunch.h"
#include "restore/launch/relay.h"

struct vmm {
    struct private_dir private; /* holds the socket */
    int listen_fd;
    int keeper_fd;        /* the line to the keeper, -1: dismissed */
    atomic_int child;     /* whom we forked; 0 when there is none (left) */
    atomic_int pid;       /* the VMM itself; 0 until it has connected */
    atomic_bool ended;    /* the VMM has: `pid` may be another's by now */
    struct target target; /* the VMM, once `pid` is set */
    bool has_target;
    struct relay relay;           /* detached: its stderr */
    uint64_t launched_ns;         /* just before the fork */
    int child_status, vmm_status; /* wait status, -1: not known (yet) */
};

/* Makes the private directory and the socket that the VMM will connect to. Exit code 1. */
int vmm_prepare(struct vmm *v, struct error *e);

/* Forks and runs the line. Descriptors of ours stay behind; stdin and stdout are /dev/null when
 * `detached`. Exit code 16 (can't be executed), 15 (its directory or user can't be taken on). */
int vmm_start(struct vmm *v, const struct relaunch *l, bool detached, struct error *e);

/*
 * Waits until the VMM connects and opens it: *fd is the connection. Strangers who connect are
 * turned away. Exit code 16 with the status when the child ends before, 17 after timeout_ms.
 */
int vmm_accept(struct vmm *v, int *fd, int timeout_ms, struct error *e);

/* Takes note of children that have ended, without waiting. True when the VMM and the child that we
 * forked are both gone. */
bool vmm_reap(struct vmm *v);

/* The guest is about to run: from now on the VMM lives on if we are killed. */
void vmm_let_live(struct vmm *v);

/* What the shell would say of the VMM: its exit status, 128+N for a signal. After vmm_reap(). */
int vmm_exit_status(const struct vmm *v);

/* If the VMM has ended, or does within a moment: puts that and its status in *e as the cause (exit
 * code 16), keeping what was being done. */
void vmm_explain_end(struct vmm *v, struct error *e);

/* Sends a signal to the VMM; to the child, which may be a wrapper, while the VMM is unknown or once
 * it has ended. Any thread. */
void vmm_signal(struct vmm *v, int sig);

/* Ends what was started: SIGTERM, a moment, SIGKILL; removes the directory. Any state. */
void vmm_end(struct vmm *v);

/* For every process that is our child now: descendants whose parents have ended come to us. */
void vmm_kill_children(int sig);

/* Leaves the VMM running and forgets it. */
void vmm_leave(struct vmm *v);

#endif
