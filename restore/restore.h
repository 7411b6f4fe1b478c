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
    bool prefetch_hot;
    bool no_fill; /* serve faults only */
    unsigned n_threads;
    bool paused; /* load, do not run */
    bool detach;
    const char *pidfile;
    const char *report_path; /* JSON lines of a detached server */
    int timeout_ms;
    const char *const *allowed; /* hazard names, NULL-terminated */
    bool json;
    bool progress;
};

/*
 * Launches and serves. `running` is called once, with the object of "type":"running", when the
 * guest runs (or is loaded, with `paused`). In the foreground returns when the VMM has ended:
 * *vmm_status is its exit status as a shell would give it (128+N for a signal). With `detach`
 * returns as soon as the guest runs. *summary (new reference) when the last page is in.
 */
int restore_run(const struct restore_options *options,
                void (*running)(void *opaque, json_t *object), void *opaque, json_t **summary,
                int *vmm_status, struct error *e);

/* --print-command: the line that would run, quoted for a shell. *line is the caller's to free. */
int restore_print_command(const char *image_path, char **line, struct error *e);

#endif
