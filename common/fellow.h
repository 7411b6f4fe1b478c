/*
 * fellow.h - other processes that have the files mapped in which a VM's memory lies. What they do
 * there raises no event of ours.
 */
#ifndef VMSNAP_COMMON_FELLOW_H
#define VMSNAP_COMMON_FELLOW_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "common/target/region.h"

struct fellow_search {
    /* The VM's process: it, those that share its memory, and this one don't count. 0: all do. */
    pid_t target;
    bool writers_only; /* only mappings that are shared and writable */
    /* The files: those of regions, */
    const struct region *regions;
    size_t n_regions;
    /* or one. */
    const struct stat *file;
};

struct fellow {
    pid_t pid;
    char name[32];               /* its own name for itself */
    const struct region *region; /* whose file it maps; NULL with `file` */
};

/*
 * Finds the first one. 1: found; 0: none, or no region lies in a file; or
 * -errno. Processes that come, go or can't be looked into are none. Reads the maps of every process
 * of the host: some 10 us each.
 */
int fellow_find(struct fellow *out, const struct fellow_search *s);

/* A process's own name for itself ("?" if it has gone). */
void fellow_name(const char *pid, char *out, size_t size);

#endif
