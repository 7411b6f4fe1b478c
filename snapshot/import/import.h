/*
 * import.h - an image of a VM that somebody else has snapshotted: Firecracker's memory file and
 * its state file. The image is one region with the memory file's length, and offsets in the two
 * are the same.
 */
#ifndef VMSNAP_SNAPSHOT_IMPORT_H
#define VMSNAP_SNAPSHOT_IMPORT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

struct import_options {
    const char *memory_path;
    const char *state_path; /* carried along as the device state; NULL: none */
    const char *image_path; /* "-": stdout */
    bool overwrite;
    int level;          /* zstd */
    unsigned n_threads; /* compressors */
    uint64_t bwlimit;   /* bytes per second; 0: no limit */
    bool progress;
};

/*
 * Makes the image. *summary (new reference): the keys of a snapshot's that have a meaning here.
 * Whatever happens, nothing is published before it is complete, and nothing else left behind: the
 * work is done by a child, over which this process watches (guardian.h). Before threads are
 * started.
 */
int import_run(const struct import_options *options, json_t **summary, struct error *e);

#endif
