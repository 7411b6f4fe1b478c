/* interrupts.h - the signals that a worker takes, where it looks for them: SIGINT and SIGTERM ask
 * it to end, SIGUSR1 for a line of progress. */
#ifndef VMSNAP_SNAPSHOT_INTERRUPTS_H
#define VMSNAP_SNAPSHOT_INTERRUPTS_H

#include <stdbool.h>

#include "common/error.h"

struct interrupts {
    int fd; /* readable when there is one; -1 before interrupts_watch() */
    int by; /* the first that asks to end; 0: none */
};

/* From now on they are read and do not end the process. Before threads are started. 0 or -errno. */
int interrupts_watch(struct interrupts *s);

/* Takes note of what has come. True: one of them asks to end. */
bool interrupts_seen(struct interrupts *s);

/* Says in *e that this was the reason, instead of what it has led to; `guest` stays. -EIO. */
int interrupts_error(const struct interrupts *s, struct error *e);

#endif
