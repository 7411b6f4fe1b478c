/*
 * refuse.h - reasons not to start a command line, each with a published name, looked for before
 * anything is started. Exit code 14. The kinds are here, what looks for them belongs to each VMM
 * (vmm_kind.h).
 */
#ifndef VMSNAP_RESTORE_REFUSE_H
#define VMSNAP_RESTORE_REFUSE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"
#include "restore/launch/relaunch.h"

struct restore_hazard_kind {
    const char *name;
    bool allowable; /* --allow takes it; else it is always refused */
    const char *what;
};

/* All kinds, in the order in which they are published. */
const struct restore_hazard_kind *restore_hazard_kinds(size_t *count);

enum restore_hazard_id {
    HAZARD_IMAGE_OWNER, /* image_owner.c looks, before the line is believed at all */
    HAZARD_IN_USE,
    HAZARD_MEM_PATH,
    HAZARD_VHOST_USER,
    HAZARD_HOT_PLUGGED,
    HAZARD_DISKS,
    HAZARD_SNAPSHOT_OPTION,
    HAZARD_INHERITED_FD,
    HAZARD_TRUNCATED_FILE,
    HAZARD_WAIT_ON,
};

/* A kind, and what was seen of it. */
struct restore_hazard {
    const struct restore_hazard_kind *kind;
    bool found;
    char reason[512]; /* empty when not found */
};

/* ---- for those who look ---- */

/* What there is to look at; the first member of a VMM's own. */
struct refuse_scope {
    const struct relaunch *launch;
    const json_t *description;
    int cwd_fd;                /* what relative paths of the line start from; -1 */
    bool (*inherited)(int fd); /* whether a descriptor came from our own caller */
    char reason[512];          /* set by the check that finds something */
};

struct refuse_check {
    enum restore_hazard_id id;
    bool recorded_only; /* looked for only where the line is the recorded one */
    /* 1 found (reason is set), 0 nothing, -errno can't tell (reason is set too: refused). */
    int (*look)(struct refuse_scope *s);
    const char *hint; /* NULL: --allow, or the command line */
};

/* Sets the reason; returns 1. */
int refuse_found(struct refuse_scope *s, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Opens the directory that the line is run in. Exit code 15. */
int refuse_scope_open(struct refuse_scope *s, struct error *e);
void refuse_scope_close(struct refuse_scope *s);

/* Looks for somebody who holds this UNIX socket's address; as `look`. */
int refuse_look_unix(struct refuse_scope *s, const char *path, bool abstract);

/* 0, or exit code 14 with the first reason that `allowed` (NULL-terminated, may be NULL) does not
 * cover. */
int refuse_run(struct refuse_scope *s, const struct refuse_check *checks, size_t n,
               const char *const *allowed, struct error *e);

/* Looks for every kind that counts for this line, found or not; `out` has room for them. */
void refuse_list(struct refuse_scope *s, const struct refuse_check *checks, size_t n,
                 struct restore_hazard *out, size_t *count);

#endif
