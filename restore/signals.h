/*
 * signals.h - Ctrl-C ends both: a signal that would end us goes to the VMM, which we outlive, since
 * its memory comes through us; the second one ends the VMM with SIGKILL. One that comes both to us
 * and through our supervisor is one.
 *
 * Ctrl-Z stops us only after it has stopped the VMM as well: a guest must not hang because its
 * server alone was suspended.
 */
#ifndef VMSNAP_RESTORE_SIGNALS_H
#define VMSNAP_RESTORE_SIGNALS_H

#include <stdbool.h>
#include <sys/types.h>

#include "common/error.h"
#include "restore/launch/vmm.h"

struct signals;

/* Blocks SIGINT, SIGTERM, SIGHUP, SIGQUIT and the terminal's stop signals here and in threads
 * started later, and starts a thread that takes them. Before any other thread. */
int signals_start(struct signals **out, struct vmm *v, struct error *e);

/* From now on the VMM takes the time it wants to end; before, it is killed two seconds after the
 * first signal. */
void signals_guest_runs(struct signals *s);

/* The first signal that came to end us, or 0. */
int signals_caught(const struct signals *s);

void signals_stop(struct signals *s);

/* For a process that serves a guest and starts none: a Ctrl-C must not take the guest's server, nor
 * a Ctrl-Z or a look at the terminal hang it. Who wants that sends SIGKILL or SIGSTOP. */
void signals_outlive(void);

/* Whether a process is stopped now, or within 200 ms: by the same Ctrl-Z. Not so in another process
 * group, nor in one without a shell that could let it go on (the kernel then ignores the signal).
 */
bool signals_is_stopped(pid_t pid);
bool signals_stops_too(pid_t pid);

#endif
