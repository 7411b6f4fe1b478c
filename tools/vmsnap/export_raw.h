/*
 * export_raw.h - memory of an image as plain bytes: into a sparse file at given offsets, or front
 * to back into a pipe, zeros included.
 */
#ifndef VMSNAP_TOOLS_EXPORT_RAW_H
#define VMSNAP_TOOLS_EXPORT_RAW_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/image/reader.h"

/* A piece of a region, and where in the output it goes. */
struct export_extent {
    uint64_t out_offset, bytes;
    uint32_t region;
    uint64_t region_offset;
};

#define EXPORT_POISON_NAMED 64u

struct export_raw {
    const struct image *img;
    const struct export_extent *extents; /* ascending, not overlapping */
    uint64_t n_extents;
    int fd;
    bool stream;      /* fd is written front to back; else it is a file, and zeros are left holes */
    const char *name; /* of the output, for messages */
    unsigned n_threads;
    bool progress;
    const volatile sig_atomic_t *interrupted; /* becomes the number of the signal */

    /* Results. */
    uint64_t out_bytes;     /* length of the output */
    uint64_t written_bytes; /* less than that in a sparse file */
    uint64_t pages_poisoned;
    struct {
        uint64_t out_offset, region_offset;
        uint32_t region;
    } poisoned[EXPORT_POISON_NAMED]; /* some of them, by output offset */
};

/* Does the work with n_threads decoding threads. The caller's thread writes a stream, draws the
 * progress and watches `interrupted`. On failure the output is worth nothing. */
int export_raw(struct export_raw *x, struct error *e);

#endif
