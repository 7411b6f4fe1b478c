/*
 * source.h - what a snapshot needs of a VMM: one table of operations per kind of source. The engine
 * knows no VMM. All calls on the main thread of the worker process; each bounded by the timeout
 * given at open. The fault thread never calls any of them.
 */
#ifndef VMSNAP_SNAPSHOT_SOURCE_H
#define VMSNAP_SNAPSHOT_SOURCE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/target/region.h"
#include "common/target/target.h"

struct source;

/* Durations of the pause, by the VMM's own stamps where it gives them. */
struct pause_times {
    uint64_t stop_ns;  /* ask to stop .. stopped (drain and flush) */
    uint64_t state_ns; /* device state saved */
    uint64_t arm_ns;   /* memory protected */
    uint64_t cont_ns;  /* ask to continue .. running */
    uint64_t pause_ns; /* stopped .. running, by the VMM's STOP/RESUME stamps if it has them */
};

struct source_ops {
    const char *name; /* "qemu", ... */

    /* What to snapshot: the VM's process, its blocks (owned by the source), its description (new
     * reference). `warnings` gets texts for the summary (exit code 3). Not in the pause. */
    int (*describe)(struct source *s, json_t **description, json_t *warnings, struct error *e);

    /* Reasons to refuse that `allowed` (NULL-terminated names) does not cover: exit code 14. */
    int (*refuse_hazards)(struct source *s, const char *const *allowed, struct error *e);

    /* Makes memory ready for protection (KSM unmerged) and undoes it. Not in the pause. */
    int (*prepare_memory)(struct source *s, struct error *e);
    int (*restore_memory)(struct source *s, struct error *e);

    /* What makes the pause shorter and takes its time, with the VM running (disks are synced); the
     * pause follows within milliseconds. Calls tick(opaque) while it waits: not 0 ends the wait,
     * with that result (*e is not set). May be NULL. */
    int (*prepare_pause)(struct source *s, int (*tick)(void *opaque), void *opaque,
                         struct error *e);

    /* The pause. `pause` leaves a VM that was not running as it was and then sets *was_running to
     * false. save_state: *buf is malloc()ed, the caller's to free. resume runs it again, only if
     * pause stopped it; may be called twice. */
    int (*pause)(struct source *s, bool *was_running, struct error *e);
    int (*save_state)(struct source *s, void **buf, size_t *len, struct error *e);
    int (*resume)(struct source *s, struct error *e);

    /* The guardian's way to resume when the worker has died at any point of a call above: clears
     * a half-sent command, continues the VM, checks that it runs. Called in another process that
     * shares the source's fds; allocates nothing that the worker's death could have locked. 0: it
     * runs; 1: the worker had not stopped it; -errno. */
    int (*resume_after_death)(struct source *s, struct error *e);

    /* stop_ns, cont_ns and pause_ns as far as the VMM says them. */
    void (*pause_times)(const struct source *s, struct pause_times *times);

    void (*close)(struct source *s);
};

struct source {
    const struct source_ops *ops;
    struct target target;
    struct region *regions;
    uint32_t n_regions;
    struct gpa_range *gpa;
    uint32_t n_gpa;
    int timeout_ms;
};

/* source/open.c: connects to `qmp_path`, finds the process (or takes `pid` if > 0), refuses states
 * in which a snapshot makes no sense, finds the memory blocks. */
int source_open(struct source **out, const char *qmp_path, pid_t pid, int timeout_ms,
                struct error *e);

struct source_firecracker_options {
    const char *api_path;
    pid_t pid;               /* 0: who listens on it */
    const char *const *maps; /* "ADDR:LEN[:NAME]", NULL-terminated; empty: found out */
    int timeout_ms;
};

/* source/firecracker.c: the same over a Firecracker's API socket. */
int source_firecracker_open(struct source **out, const struct source_firecracker_options *options,
                            struct error *e);

#endif
