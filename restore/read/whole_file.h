/*
 * whole_file.h - a small file that lies beside another, read as a whole by a process: its file
 * system may hang, and who serves a guest must not wait for it (common/child.h).
 */
#ifndef VMSNAP_RESTORE_WHOLE_FILE_H
#define VMSNAP_RESTORE_WHOLE_FILE_H

#include <limits.h>
#include <stddef.h>
#include <stdint.h>

/* The path of an open file, whatever name it was opened by, and `suffix`. 0; -ENOENT: it has no
 * name (any more); -ENAMETOOLONG or another -errno. May hang. */
int whole_file_beside(int fd, const char *suffix, char path[PATH_MAX]);

struct whole_file_shared;

struct whole_file {
    int pidfd;
    struct whole_file_shared *shared; /* with the process; NULL: nothing was begun */
    size_t map_bytes;
};

/* Begins to read what lies beside `fd`, at most max_bytes of it. 0 or -errno. */
int whole_file_begin(struct whole_file *f, int fd, const char *suffix, uint64_t max_bytes);

/* 0: it is read; -EINPROGRESS: not within timeout_ms; -EOWNERDEAD: the process was killed; else why
 * it can't be read. */
int whole_file_wait(struct whole_file *f, int timeout_ms);

/* What was read, until whole_file_end(): nothing of what is no regular file. */
const void *whole_file_content(const struct whole_file *f, size_t *bytes);
const char *whole_file_path(const struct whole_file *f);

/* Ends the process, or leaves it to end by itself if it hangs. Any state. */
void whole_file_end(struct whole_file *f);

#endif
