/*
 * hazards.h - reasons not to snapshot a VM that can be seen from outside. Each has a published
 * name, which never changes; --allow takes those that are allowable. Some the kernel shows, of any
 * VMM; others only a VMM can tell (common/qemu/hazards.h).
 */
#ifndef VMSNAP_COMMON_HAZARDS_H
#define VMSNAP_COMMON_HAZARDS_H

#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"
#include "common/target/region.h"
#include "common/target/target.h"

/* What a name stands for: fixed. */
struct hazard_kind {
    const char *name;
    bool allowable; /* --allow takes it; else it is always refused */
    enum vmsnap_exit exit_code;
    const char *what; /* one line for `vmsnap check --help` and the man page */
};

/* All kinds, in the order in which they are published. */
const struct hazard_kind *hazard_kinds(size_t *count);

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
    const struct target *t;
    const struct region *regions; /* NULL: its blocks are not known */
    size_t n_regions;
};

/* How a VMM is asked for one kind. It sets what was found (hazard_found()); -errno only when it
 * cannot tell. */
struct hazard_probe {
    const char *name;
    int (*look)(void *opaque, struct hazard *h, struct error *e);
};

/*
 * Looks for every hazard that the kernel shows, then by n `probes` for those that a VMM tells of.
 * Fills all kinds that can be looked for, found or not, in the order in which they are published;
 * `out` has room for HAZARD_MAX. Blocks on /proc and whatever the probes do: not in the pause.
 */
int hazards_find(struct hazard *out, size_t *count, const struct hazard_scope *scope,
                 const struct hazard_probe *probes, size_t n, void *opaque, struct error *e);

/* For a probe: marks a hazard as found, with the reason. */
void hazard_found(struct hazard *h, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* 0 when each one found is allowed or only a warning; else the first that is not, with its exit
 * code and, where there is one, the word for --allow. `allowed` is NULL-terminated, may be NULL. */
int hazards_refuse(const struct hazard *items, size_t count, const char *const *allowed,
                   struct error *e);

#endif
