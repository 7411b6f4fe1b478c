/*
 * forkdump.h - the way of saving a guest that vmsnap is compared with: fork(), and the child writes
 * its copy of the memory to a file. One at a time.
 */
#ifndef MINIVM_FORKDUMP_H
#define MINIVM_FORKDUMP_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "memory.h"

/* `compress`: by the program `zstd -1 -T0`. *fork_ns: how long fork() took. */
bool forkdump_start(const struct memory *m, const char *path, bool compress, uint64_t *fork_ns,
                    char *why, size_t why_bytes);

/* What has become of the last one: an object, or null if there was none. A new reference. */
json_t *forkdump_status(void);

/* After SIGCHLD. True: it has just ended. */
bool forkdump_reap(void);

#endif
