/*
 * refuse.h - reasons not to start a command line, each with a published name, looked for before
 * anything is started. Exit code 14.
 */
#ifndef VMSNAP_RESTORE_QEMU_REFUSE_H
#define VMSNAP_RESTORE_QEMU_REFUSE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"
#include "restore/qemu/relaunch.h"

struct restore_hazard_kind {
    const char *name;
    bool allowable; /* --allow takes it; else it is always refused */
    const char *what;
};

/* All kinds, in the order in which they are published. */
const struct restore_hazard_kind *restore_hazard_kinds(size_t *count);

/*
 * 0, or exit code 14 with the first reason that `allowed` (NULL-terminated, may be NULL) does not
 * cover. `inherited(fd)`: whether the descriptor came from our own caller, so that the VMM gets it.
 */
int relaunch_refuse(const struct relaunch *l, const json_t *description, const char *const *allowed,
                    bool (*inherited)(int fd), struct error *e);

/* Whether a descriptor of ours came from our caller: for `inherited`. Ours are all close-on-exec.
 */
bool relaunch_fd_inherited(int fd);

/* A kind, and what was seen of it. */
struct restore_hazard {
    const struct restore_hazard_kind *kind;
    bool found;
    char reason[512]; /* empty when not found */
};

/* Looks for every kind that counts for this line (but image-owner), found or not. `out` has room
 * for as many as restore_hazard_kinds() says. -errno only when it cannot look at all. */
int relaunch_list(const struct relaunch *l, const json_t *description, bool (*inherited)(int fd),
                  struct restore_hazard *out, size_t *count, struct error *e);

#endif
