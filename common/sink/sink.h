/*
 * sink.h - where an image goes: a file (libaio, O_DIRECT where the file system has it), or a pipe.
 * Appending is asynchronous: callers copy into write buffers, an I/O thread of the sink's own and,
 * for files, a process of its own write them: this process never sleeps in a file system, so that
 * it can be ended at any time. Nothing is under the final name before sink_commit().
 */
#ifndef VMSNAP_COMMON_SINK_H
#define VMSNAP_COMMON_SINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/stage.h"

struct sink;

#define SINK_BUFFER_BYTES (1u << 20)
#define SINK_MIN_BUFFERS 3u
#define SINK_MIN_RATE (64u << 10)

struct sink_options {
    bool overwrite;     /* replace an existing file at commit (else -EEXIST, exit code 1) */
    unsigned n_buffers; /* of SINK_BUFFER_BYTES each, >= SINK_MIN_BUFFERS: all it ever allocates */
    uint64_t bytes_per_s; /* the most that goes to the image, smoothly; 0: no limit. At least
                             SINK_MIN_RATE */
};

/*
 * Opens a file to be published as `path`: unnamed (O_TMPFILE) where the file system has it, else a
 * hidden temporary name beside it (".NAME.vmsnap-PID-RANDOM"). Refuses an existing path unless
 * overwrite. Starts the I/O thread and forks the writer process: open a sink before there is
 * anything that must not be copied (memory locked, a guest attached).
 */
int sink_open_file(struct sink **out, const char *path, const struct sink_options *options,
                   struct error *e);

/* Writes to an fd (a pipe, a socket, a terminal's redirect); does not close it. */
int sink_open_fd(struct sink **out, int fd, const struct sink_options *options, struct error *e);

/* The temporary name, or NULL when there is none: what a guardian removes if we are killed. */
const char *sink_temporary_path(const struct sink *s);

/*
 * Appends; *offset (may be NULL) gets where it stands in the file. Blocks while every buffer is in
 * flight: that is the back-pressure. After an I/O error every call returns that error at once.
 * Any thread.
 */
int sink_append(struct sink *s, const void *data, size_t len, uint64_t *offset);

/* Bytes of write buffers it holds, from open to close. */
uint64_t sink_buffer_bytes(const struct sink *s);

/* Bytes appended so far. */
uint64_t sink_offset(const struct sink *s);

/* What its I/O thread spent its time on; valid until close. */
struct sink_stages {
    struct stage_time busy;      /* starting writes, taking them back */
    struct stage_time idle;      /* nothing to write */
    struct stage_time waiting;   /* for the file or the reader */
    struct stage_time held_back; /* by the limit on the rate */
    struct stage_time in_flight; /* each write, from its start to its end; bytes written */
    struct stage_time appending; /* not the I/O thread: callers, for a free write buffer */
    atomic_uint deepest;         /* the most writes in flight at once */
};
const struct sink_stages *sink_stages(const struct sink *s);

/* Set as soon as a write failed: 0 or -errno. Never blocks; any thread. */
int sink_error(const struct sink *s, struct error *e);

/* Writes what is left, cuts padding off, fsyncs, links under the final name, fsyncs the directory.
 * On failure nothing is published. The sink still has to be closed. */
int sink_commit(struct sink *s, struct error *e);

/* Makes every blocked and later sink_append() return -ECANCELED: lets the pipeline end when the
 * sink hangs. Does not wait for the I/O thread. Any thread. */
void sink_cancel(struct sink *s);

/* Ends the I/O and frees. Without a commit before it, nothing is left behind. What hangs in the
 * kernel is given a second, then left to end by itself (returns -EBUSY): a process that holds
 * nothing but the unfinished file. What only gets no CPU is waited for (thread.h). */
int sink_close(struct sink *s);

#endif
