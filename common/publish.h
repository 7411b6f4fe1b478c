/*
 * publish.h - a file that nobody sees before it is complete: written without a name (O_TMPFILE) or
 * under a hidden one, then linked or renamed to its final name after fsync. Readable by its owner
 * only: what goes in here is guest memory.
 */
#ifndef VMSNAP_COMMON_PUBLISH_H
#define VMSNAP_COMMON_PUBLISH_H

#include <limits.h>
#include <stdbool.h>

#include "common/error.h"

struct publish {
    int fd;         /* the file, open for reading and writing; stays open until publish_close() */
    int dir_fd;     /* the directory of the final name */
    bool overwrite; /* replace what stands under the final name */
    bool unnamed;   /* O_TMPFILE: it has no name yet */
    bool linked;    /* the hidden name exists */
    char path[PATH_MAX];      /* the final path, symbolic links of an existing file resolved */
    char temporary[PATH_MAX]; /* the hidden path beside it: ".NAME.vmsnap-PID-RANDOM" */
};

/*
 * Opens a new file that is to become `path`. Refused: an existing path unless `overwrite`
 * (-EEXIST, exit code 1), and anything that exists and is no regular file. Ends with
 * publish_close(), also after a failure of the calls below.
 */
int publish_open(struct publish *p, const char *path, bool overwrite, struct error *e);

/* fsync, gives the file its final name, fsyncs the directory. Without `overwrite` a file that has
 * come under that name meanwhile is left alone: -EEXIST. Blocks on the disk. */
int publish_commit(struct publish *p, struct error *e);

/* Only the second half of publish_commit(), for a caller that has done the fsync. */
int publish_link(struct publish *p, struct error *e);

/* Of a file that can't be made or written, by its errno: the exit code, and what to do about it (a
 * hint in *e, by e->err, unless it has one). */
enum vmsnap_exit publish_exit_code(int err);
void publish_hint(struct error *e);

/* Closes; what was not committed leaves nothing behind. */
void publish_close(struct publish *p);

#endif
