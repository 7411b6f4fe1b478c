/*
 * supervised.h - the server's side of the line to its supervisor (supervisor.h): what that one has
 * to know in order to go on in its place. In a process without a supervisor all of it does nothing.
 *
 * The line is a socket of messages, so that what was said before a death is still read after it.
 */
#ifndef VMSNAP_RESTORE_SUPERVISED_H
#define VMSNAP_RESTORE_SUPERVISED_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/signalfd.h>
#include <sys/types.h>

#include "restore/clock_sync.h"

struct vmm;

enum supervised_kind {
    /* From here on the VMM lives on if we die. With two descriptors: a pidfd of it, and the
     * connection for commands to it. */
    SUPERVISED_LIVES,
    SUPERVISED_RUNS,     /* the guest was let run, or left paused on purpose */
    SUPERVISED_TOLD,     /* detached: our caller knows that it runs */
    SUPERVISED_SERVES,   /* every fault is answered; `n_settled` clusters needed nothing any more */
    SUPERVISED_CLOCK,    /* what came of --sync-clock */
    SUPERVISED_LEARNED,  /* what --learn recorded is written */
    SUPERVISED_COMPLETE, /* all memory is in, nothing of ours is left in the VMM */
    SUPERVISED_UNSERVED, /* we can't serve it any more, and end: as if we had been killed */
};

struct supervised_message {
    uint32_t kind;
    int32_t vmm, child;   /* SUPERVISED_LIVES: its pid, and whom we forked (a wrapper, or itself) */
    uint32_t resumes;     /* SUPERVISED_LIVES: its guest is to be let run */
    uint32_t on_terminal; /* SUPERVISED_LIVES: it has the terminal: no progress line there */
    uint64_t n_settled;
    struct clock_outcome clock;
};

/* This process has become a server: `line` is its end, `supervisor` who holds the other. */
void supervised_begin(int line, pid_t supervisor);

/* What `kind` says. Never block; are lost if the supervisor is gone. */
void supervised_tell_lives(const struct vmm *v, int command_fd, bool resumes, bool on_terminal);
void supervised_tell_runs(void);
void supervised_tell_told(void);
void supervised_tell_serves(uint64_t n_settled);
void supervised_tell_clock(const struct clock_outcome *outcome);
void supervised_tell_learned(void);
void supervised_tell_complete(void);
bool supervised_tell_unserved(void); /* false: nobody has heard it */

/* Polls as POLLHUP when the supervisor has died; -1: there is none, or its end was noticed. */
int supervised_line(void);

/* Says (log) that it has died. */
void supervised_note_loss(void);

/* The supervisor, before it forks any server: these see how often it was asked to end. 0 or
 * -errno. */
int supervised_share(void);
/* It was, and is about to pass that on. */
void supervised_note_asked(void);
/* A server: how often. */
unsigned supervised_times_asked(void);

/* Whether a signal was passed on to us by our supervisor. */
bool supervised_passed(const struct signalfd_siginfo *info);

#endif
