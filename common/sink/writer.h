/*
 * writer.h - a process that does the file I/O of a sink.
 *
 * Why a process: one that has I/O in flight on a file system that hangs can't be ended. Its memory
 * stays (the kernel waits for asynchronous I/O when an address space goes away), and so do all its
 * descriptors, a userfaultfd that protects a guest's memory among them: measured, a process killed
 * with writes in flight on a frozen ext4 held its descriptors until the file system was thawed. So
 * the process that holds the guest must never sleep in a file system. The writer has nothing but
 * the file, a socket to its parent, and the sink's buffers, which are shared memory; it ends when
 * the socket closes.
 */
#ifndef VMSNAP_COMMON_SINK_WRITER_H
#define VMSNAP_COMMON_SINK_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct sink_writer {
    int pidfd;  /* of the process; -1: none */
    int socket; /* poll it: POLLIN when a reply waits, or the process has ended */
};

struct sink_writer_setup {
    int fd;         /* the file; the parent keeps its own copy */
    bool stream;    /* write where the descriptor stands (a redirect): no O_DIRECT, no cutting */
    uint8_t *arena; /* n_buffers of SINK_BUFFER_BYTES, MAP_SHARED */
    unsigned n_buffers;
};

/* Forks it, and waits until it has closed its copies of our descriptors. The child makes only
 * system calls, so other threads do no harm. 0 or -errno. */
int sink_writer_start(struct sink_writer *w, const struct sink_writer_setup *setup);

/* Each asks for one thing and does not wait; at most SINK_WRITER_DEPTH may be on their way. */
#define SINK_WRITER_DEPTH 8u
int sink_writer_write(struct sink_writer *w, unsigned buffer, uint64_t offset, size_t bytes);
/* When all is written: cuts what was allocated ahead, fsync. */
int sink_writer_flush(struct sink_writer *w, uint64_t file_bytes);

struct sink_writer_reply {
    unsigned buffer; /* SINK_WRITER_FLUSHED: of a flush */
    int result;      /* 0 or -errno */
};
#define SINK_WRITER_FLUSHED (~0u)

/* Takes a reply without waiting: 1, 0 none waits, -EOWNERDEAD: the process has ended. */
int sink_writer_reply(struct sink_writer *w, struct sink_writer_reply *reply);

/* Ends it. -EBUSY: it hangs in the kernel, and will end by itself when it can. */
int sink_writer_stop(struct sink_writer *w, int grace_ms);

#endif
