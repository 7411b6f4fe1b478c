/*
 * reader.h - a process that reads the image for us, where that may have to wait for the storage.
 *
 * Why a process: a thread in a read that hangs (a network file system without its server, a disk
 * that is gone) can't be ended, and with it its process keeps all its descriptors: the lock that
 * keeps a second server out, and our copy of the userfaultfd. The reader has nothing but the image,
 * a socket to us, and a buffer that is shared; it ends when the socket closes, if it can.
 */
#ifndef VMSNAP_RESTORE_READER_H
#define VMSNAP_RESTORE_READER_H

#include <stdbool.h>
#include <stdint.h>

#define READER_BYTES (32u << 10) /* more than any cluster's record */

/* What a reader's CPU time is worth. It never is the last of all (SCHED_IDLE), as the thread that
 * forks it may be: it is used on when that has changed. */
enum reader_rank {
    READER_AS_CALLER,
    READER_BEHIND, /* the guest's own threads */
};

struct reader {
    int pidfd;
    int socket;
    unsigned char *buffer; /* READER_BYTES, shared with the process: what was read. NULL: none */
};

/* Forks it. Memory that must not be kept alive by a reader which hangs is MADV_DONTFORK. Any
 * thread, one at a time per reader for all of these. 0 or -errno. */
int reader_start(struct reader *r, int image_fd, enum reader_rank rank);

/* Asks it to have the kernel read ahead there; *result of reader_wait() is 0 then. */
int reader_advise(struct reader *r, uint64_t offset, uint64_t bytes);

/* Asks for `bytes` (at most READER_BYTES) at `offset`; `fresh`: from the storage, not from the page
 * cache. Does not wait. 0 or -EOWNERDEAD: the process has ended. */
int reader_ask(struct reader *r, uint64_t offset, uint32_t bytes, bool fresh);

/* Waits for the answer: 1 and *result, the bytes that were read (fewer: the file ends there) or
 * -errno; 0: not within timeout_ms; -EOWNERDEAD. */
int reader_wait(struct reader *r, int timeout_ms, int64_t *result);

/* Ends it, or leaves it to end by itself if it hangs. One that is all zeros, or
 * stopped: nothing. */
void reader_stop(struct reader *r);

/* The same in two steps, for several: reader_kill() does not wait, reader_end() at most that long.
 * -EBUSY: it hangs still. */
#define READER_GRACE_MS 20
void reader_kill(struct reader *r);
int reader_end(struct reader *r, int grace_ms);

#endif
