/* resume.h - takes over the memory of a guest whose server has died. */
#ifndef VMSNAP_RESTORE_RESUME_H
#define VMSNAP_RESTORE_RESUME_H

#include <sys/types.h>

#include "restore/clock_sync.h"
#include "restore/restore.h"

/* What a supervisor has kept of the server before. */
struct resume_help {
    int command_fd; /* the VMM's connection for commands: its guest is to be let run; -1: it is not
                     */
    int word_fd;    /* detached: where the caller waits to hear that the guest runs; -1 */
    const struct clock_outcome *clock; /* what came of --sync-clock, if it was heard */
    bool learned;                      /* what --learn recorded is written */
    bool on_terminal;                  /* the VMM has the terminal: no progress line there */
};

/*
 * Serves process `pid` from where the server before left off, until the last page is in or the
 * process has ended. Of the options: image_path (NULL: the recorded one), n_threads, prefetch_hot,
 * timeout_ms, progress, report ("running" once every fault is answered again, unless all was in
 * already, and "summary"), trouble. `help` may be NULL. Exit codes: 10 (no such process, or nobody
 * is restoring it), 11 (it is served already), 13, 15 (another image than it was started from), 1.
 * On failure the guest waits as before.
 */
int resume_run(const struct restore_options *o, pid_t pid, const struct resume_help *help,
               struct error *e);

#endif
