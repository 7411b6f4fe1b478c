/*
 * memory_file.h - the memory of a VM that lies in a file already (Firecracker's memory file): what
 * is a hole in it, and the rest read without filling the page cache. One thread.
 */
#ifndef VMSNAP_SNAPSHOT_MEMORY_FILE_H
#define VMSNAP_SNAPSHOT_MEMORY_FILE_H

#include <stdint.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "common/error.h"

struct memory_file {
    const char *path; /* borrowed */
    int fd;
    struct stat before; /* when it was opened */
    uint64_t bytes;
    uint64_t read_bytes; /* so far: holes are never read */
};

/* Exit code 13: no regular file, empty, or of a length that is no multiple of 4096; 1: it can't be
 * opened. The caller ends with memory_file_close(), also after a failure. */
int memory_file_open(struct memory_file *f, const char *path, struct error *e);

/* The first data at `from` or after it: [*start, *end), whole clusters but for the file's end.
 * Both are the file's length where there is no more. Blocks on the file system. */
int memory_file_next_data(const struct memory_file *f, uint64_t from, uint64_t *start,
                          uint64_t *end, struct error *e);

/* Reads exactly what `iov` holds. What was not in the page cache before is not left there. */
int memory_file_read(struct memory_file *f, uint64_t offset, const struct iovec *iov, int n_iov,
                     struct error *e);

/* Fails (exit code 1) if somebody has changed it since it was opened. */
int memory_file_check_unchanged(const struct memory_file *f, struct error *e);

void memory_file_close(struct memory_file *f);

#endif
