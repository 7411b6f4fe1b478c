/*
 * hazards.h - reasons not to snapshot a QEMU that can be seen from outside; those that the kernel
 * shows count for any other VMM as well. Each has a published name, which never changes; --allow
 * takes those that are allowable.
 */
#ifndef VMSNAP_COMMON_QEMU_HAZARDS_H
#define VMSNAP_COMMON_QEMU_HAZARDS_H

#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"
#include "common/qmp.h"
#include "common/region.h"
#include "common/target.h"

/* What a name stands for: fixed. */
struct hazard_kind {
    const char *name;
    bool allowable; /* --allow takes it; else it is always refused */
    enum vmsnap_exit exit_code;
    const char *what; /* one line for `vmsnap check --help` and the man page */
};

/* All kinds, in the order in which they are published. */
const struct hazard_kind *hazard_kinds(size_t *count);

/* True when `name` is a published name that --allow takes. */
bool hazard_allowable(const char *name);

struct hazard {
    const struct hazard_kind *kind;
    bool found;
    bool allowable;   /* as its kind, less where what was seen is worse */
    bool warning;     /* found, but only told (exit code 3), not refused */
    char reason[256]; /* what was seen, or that nothing was */
};
#define HAZARD_MAX 32

/* What to look at. */
struct hazard_scope {
    struct qmp *q; /* NULL: only what the kernel says of the process is looked for */
    const struct target *t;
    const struct region *regions; /* NULL: its blocks are not known */
    size_t n_regions;
    const json_t *described; /* machine_describe() of the same VM, or NULL: then it is asked */
    int timeout_ms;          /* for all together */
};

/* Looks for every hazard. Fills all kinds (that can be looked for), found or not; `out` has room
 * for HAZARD_MAX. Blocks on QMP and /proc: not in the pause. */
int hazards_find(struct hazard *out, size_t *count, const struct hazard_scope *scope,
                 struct error *e);

/* 0 when each one found is allowed or only a warning; else the first that is not, with its exit
 * code and, where there is one, the word for --allow. `allowed` is NULL-terminated, may be NULL. */
int hazards_refuse(const struct hazard *items, size_t count, const char *const *allowed,
                   struct error *e);

#endif
