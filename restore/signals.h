/*
 * signals.h - Ctrl-C ends both: a signal that would end us goes to the VMM, which we outlive, since
 * its memory comes through us; the second one ends the VMM with SIGKILL.
 *
 * Ctrl-Z stops us only after it has stopped the VMM as well: a guest must not hang because its
 * server alone was suspended.
 */
#ifndef VMSNAP_RESTORE_SIGNALS_H
#define VMSNAP_RESTORE_SIGNALS_H

#include "common/error.h"
#include "restore/vmm.h"

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

#endif
