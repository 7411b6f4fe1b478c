/* stepping_source.h - a stepping_process as a source of snapshots, and its image judged. */
#ifndef VMSNAP_TESTS_STEPPING_SOURCE_H
#define VMSNAP_TESTS_STEPPING_SOURCE_H

#include "snapshot/snapshot.h"
#include "snapshot/source/source.h"
#include "tests/engine/stepping_process.h"

struct stepping_source {
    struct source base;
    struct stepping_board *board;
    pid_t pid;
    struct region regions[STEPPING_MAX_BLOCKS];
    struct mapping_list maps;
    /* Called in the worker before the process is paused; may be NULL. */
    void (*pausing)(struct stepping_source *s);
    /* Called in the worker once the process runs again after the instant; may be NULL. */
    void (*resumed)(struct stepping_source *s);
};

/* Starts the process of `board` and makes a source of it. False: not possible here. */
bool stepping_source_open(struct stepping_source *s, struct stepping_board *board);
void stepping_source_close(struct stepping_source *s);

/* Options for a snapshot to `image_path` with a small buffer. */
struct snapshot_options stepping_options(const char *image_path);

/* Compares every page of the image with what it must have been at the instant that its device state
 * tells. Returns the number of wrong pages (printed), -1 if the image can't be read. */
long stepping_judge(const char *image_path);

/* The number of pages of the image that are not all zeros, -1 if it can't be read. */
long stepping_count_stored(const char *image_path);

#endif
