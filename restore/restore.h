/* restore.h - starts a VM from an image and serves its memory until the last page is in. */
#ifndef VMSNAP_RESTORE_RESTORE_H
#define VMSNAP_RESTORE_RESTORE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

struct restore_options {
    const char *image_path;
    char *const *vmm_argv; /* NULL: the recorded command line */
    bool prefetch_hot;     /* and what was learned */
    bool learn;            /* what this run touches first, for the next ones */
    bool no_fill;          /* serve faults only */
    uint64_t bytes_per_s;  /* the fill's limit; 0: none */
    unsigned n_threads;    /* 0: as many as there are CPUs */
    bool paused;           /* load, do not run */
    bool detach;
    const char *pidfile; /* the VMM's pid goes here; may be NULL */
    bool poison_damage;  /* what the image can't give any more is poisoned; else a guest waits */
    int timeout_ms;      /* for each wait on the VMM */
    bool sync_clock;     /* set the guest's clock; with `detach` before the caller is told */
    bool progress;       /* a progress line on stderr, if the VMM leaves the terminal alone */
    const char *const *allowed; /* hazard names, NULL-terminated */

    /*
     * Called on the main thread. `report` gets "running" when the guest runs (or is loaded, with
     * `paused`), "progress" about once a second while memory comes in and when SIGUSR1 asks for it,
     * "summary" when the last page is in, and in the foreground "exit" at the end; it steals the
     * object. `trouble`: what went wrong while serving, without ending it. `detached`
     * (only with `detach`): in the server's own process, once the caller's has been told that the
     * guest runs; `report` and `trouble` are called there from then on.
     */
    void (*report)(void *opaque, const char *type, json_t *object);
    void (*trouble)(void *opaque, const struct error *e);
    void (*detached)(void *opaque);
    void (*vm_process)(
        void *opaque); /* NULL, or: in each process of a VM of --listen, first thing */
    void *opaque;
};

/*
 * Launches and serves. In the foreground returns when the VMM has ended: *vmm_status is its exit
 * status as a shell would give it (128+N for a signal). With `detach` returns as soon as the guest
 * runs (the server's process never returns from here). Must be called before any thread is started.
 * On failure nothing that was started is left.
 */
int restore_run(const struct restore_options *options, int *vmm_status, struct error *e);

/* --print-command: the line that would run, quoted for a shell. *line is the caller's to free. */
int restore_print_command(const char *image_path, char **line, struct error *e);

#endif
