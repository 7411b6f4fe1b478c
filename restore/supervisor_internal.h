/* supervisor_internal.h - what the files of the supervisor share (supervisor.c tells the whole). */
#ifndef VMSNAP_RESTORE_SUPERVISOR_INTERNAL_H
#define VMSNAP_RESTORE_SUPERVISOR_INTERNAL_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <unistd.h>

#include "restore/clock_sync.h"
#include "restore/launch/pidfile.h"
#include "restore/restore.h"
#include "restore/supervisor.h"

enum end {
    END_NONE,
    END_SERVER,   /* the first server has ended by itself */
    END_TOO_SOON, /* it was killed before the guest was to run, or the takeover had come about */
    END_COMPLETE, /* all is in, and nobody waits for the VMM's end */
    END_VMM,
    END_GIVEN_UP, /* nobody waits for the VMM's end */
};

struct supervisor {
    const struct restore_options *o;
    const struct supervisor_charge *charge; /* NULL: vmsnap has started the VMM, or `by_hand` */
    bool leaves;                            /* `charge`: once all is in */
    struct pidfile pidfile;                 /* by hand: that was taken over */
    bool by_hand;  /* --resume: the VMM is no child of ours, nor to be ended by our signals */
    int word_fd;   /* detached: where our caller waits for a word; -1 */
    sigset_t mask; /* as it was before us */
    int signal_fd, line;

    pid_t server;       /* 0: none runs */
    bool is_first;      /* `server` is, or was, the one that started the VMM, or the takeover */
    bool is_unserved;   /* `server` has said that it can't go on */
    uint64_t began_ns;  /* the server */
    uint64_t next_ns;   /* not before that another one */
    unsigned n_started; /* successors */
    unsigned n_failures;
    bool lacks_process; /* none could be had for a server */
    uint64_t n_settled; /* clusters that needed nothing any more when the last one took over */

    bool lives, runs, complete, given_up;
    bool is_recorded;             /* given up: the VMM has a record of what is missing */
    bool by_other;                /* given up: and somebody else serves it */
    bool on_terminal;             /* the VMM has it */
    bool resumes;                 /* the guest is to be let run */
    bool served;                  /* by hand: the takeover has come about */
    pid_t vmm, child;             /* `child`: who was started, a wrapper perhaps */
    int vmm_fd;                   /* a pidfd */
    int command_fd;               /* until the guest runs; -1 */
    int vmm_status, child_status; /* of waitpid(); -1: not seen */
    bool learned;                 /* what --learn recorded is written */
    struct clock_outcome clock;   /* of --sync-clock */
    int first_signal;             /* that was to end us, 0: none */
    uint64_t slow_ns;             /* from then on the VMM takes long to end; 0: not told to */
    enum end end;
    int end_status; /* END_SERVER: exit code; END_TOO_SOON: the server's wait status */
};

static inline void supervisor_close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* ---- servers: supervisor_server.c ---- */

/* Forks a server. 1: in the server, 0: here, or -errno. */
int supervisor_fork(struct supervisor *s);

/* In a server that is none of restore.c's: to its end. */
_Noreturn void supervisor_run_server(struct supervisor *s);

/* Takes all that the server has told. False: nothing more will come. */
bool supervisor_read_line(struct supervisor *s);

/* It has ended, with that wait status: s->end, or when another one is due. */
void supervisor_take_end(struct supervisor *s, int status);

/* Whether another one is due, now or at s->next_ns. */
bool supervisor_wants_server(const struct supervisor *s);
void supervisor_start_server(struct supervisor *s);

bool supervisor_vmm_ended(const struct supervisor *s);

/* Whether a wrapper of the VMM is left, whose status is what counts. */
bool supervisor_wrapper_is_left(const struct supervisor *s);

/* ---- given up: supervisor_watch.c ---- */

/* Looks whether somebody has taken it over by hand, and is through: then s->complete. In how many
 * milliseconds to look again; -1: never. */
int supervisor_watch_given_up(struct supervisor *s);

/* ---- how it ends: supervisor_end.c ---- */

/* Whether there is nothing more to do; s->end tells why. */
bool supervisor_is_over(struct supervisor *s);

/* Puts in order what is left, says what became of it, and returns as restore_run() does, or exits
 * where nothing more is to be said. */
int supervisor_finish(struct supervisor *s, int *vmm_status, struct error *e);

/* No server gets any further: the error that says so. */
int supervisor_explain_failure(const struct supervisor *s, struct error *e);

#endif
