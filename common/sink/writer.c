/*
 * writer.c - both halves of the writer process: what the parent calls, and what runs in the
 * child.
 *
 * Where the file system has O_DIRECT, 1 MiB writes go through libaio, several in flight, and leave
 * the page cache to the guest. A write that extends a file is synchronous on ext4 (its size changes
 * under the inode lock): io_submit() of 1 MiB then took 0.50 ms in the median, and 0.06 ms inside
 * the file. So the file is kept longer than what is written, by fallocate() ahead of it; the end is
 * cut off before fsync. tmpfs takes O_DIRECT without being the better for it, other file systems
 * refuse it: there plain writes, each followed by a hint to start writeback, so that the fsync at
 * the end finds little left.
 */
#include "common/sink/writer.h"

#include <errno.h>
#include <fcntl.h>
#include <libaio.h>
#include <linux/magic.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/child.h"
#include "common/sink/sink.h"
#include "common/testhook.h"

#define DIRECT_ALIGN 4096u
#define PREALLOCATE_BYTES (64ull << 20)

struct request {
    unsigned buffer; /* SINK_WRITER_FLUSHED: a flush */
    uint64_t offset;
    uint64_t bytes;
};

/* ---- the child ---- */

struct child {
    struct sink_writer_setup setup;
    int socket;
    bool direct; /* O_DIRECT is set on the fd, and libaio is ready */
    bool preallocate;
    uint64_t allocated_end;
    io_context_t aio;
    int aio_event;   /* -1 without libaio */
    struct iocb *cb; /* one per buffer; `data` is the request's length before padding */
};

/* Uses O_DIRECT and libaio if both are to be had. */
static void try_direct(struct child *c)
{
    struct statfs fs;
    int flags = fcntl(c->setup.fd, F_GETFL);
    c->aio_event = -1;
    if (c->setup.stream || TESTHOOK_MASKED("file.direct") || fstatfs(c->setup.fd, &fs) < 0 ||
        fs.f_type == TMPFS_MAGIC || io_setup(SINK_WRITER_DEPTH, &c->aio) < 0)
        return;
    c->aio_event = eventfd(0, EFD_NONBLOCK);
    c->direct = c->aio_event >= 0 && fcntl(c->setup.fd, F_SETFL, flags | O_DIRECT) == 0;
    c->preallocate = c->direct;
}

static void stop_direct(struct child *c)
{
    int flags = fcntl(c->setup.fd, F_GETFL);
    fcntl(c->setup.fd, F_SETFL, flags & ~O_DIRECT);
    c->direct = false;
}

/* Keeps the file longer than what is written. Failing to is no error: the writes themselves tell
 * whether there is room. */
static void grow_ahead(struct child *c, uint64_t end)
{
    if (!c->preallocate || end <= c->allocated_end)
        return;
    uint64_t to = (end + PREALLOCATE_BYTES - 1) / PREALLOCATE_BYTES * PREALLOCATE_BYTES;
    if (fallocate(c->setup.fd, 0, (off_t)c->allocated_end, (off_t)(to - c->allocated_end)) == 0)
        c->allocated_end = to;
    else
        c->preallocate = false;
}

static uint8_t *buffer_at(const struct child *c, unsigned buffer)
{
    return c->setup.arena + (size_t)buffer * SINK_BUFFER_BYTES;
}

/* Writes bytes [done, bytes) of a buffer, waiting for it. 0 or -errno. */
static int write_plain(struct child *c, const uint8_t *data, uint64_t offset, size_t bytes,
                       size_t done)
{
    while (done < bytes) {
        size_t len = bytes - done;
        if (!c->direct && TESTHOOK_FAIL("sink-short-write") && len > 1)
            len /= 2;
        ssize_t n = c->setup.stream ? write(c->setup.fd, data + done, len)
                                    : pwrite(c->setup.fd, data + done, len, (off_t)(offset + done));
        if (n >= 0)
            done += (size_t)n;
        else if (errno == EINVAL && c->direct)
            stop_direct(c); /* not aligned as this file system wants it */
        else if (errno != EINTR)
            return -errno;
    }
    if (!c->direct && !c->setup.stream)
        sync_file_range(c->setup.fd, (off_t)offset, (off_t)bytes, SYNC_FILE_RANGE_WRITE);
    return 0;
}

static void answer(const struct child *c, unsigned buffer, int result)
{
    const struct sink_writer_reply reply = {.buffer = buffer, .result = result};
    if (send(c->socket, &reply, sizeof(reply), MSG_NOSIGNAL) != sizeof(reply))
        _exit(0); /* the parent has gone */
}

/* The end of a file is padded to what O_DIRECT needs; the flush cuts that off. */
static void start_write(struct child *c, const struct request *r)
{
    uint8_t *data = buffer_at(c, r->buffer);
    struct iocb *cb = &c->cb[r->buffer];
    grow_ahead(c, r->offset + r->bytes);
    if (c->direct) {
        size_t padded = (r->bytes + DIRECT_ALIGN - 1) / DIRECT_ALIGN * DIRECT_ALIGN;
        memset(data + r->bytes, 0, padded - r->bytes);
        io_prep_pwrite(cb, c->setup.fd, data, padded, (long long)r->offset);
        io_set_eventfd(cb, c->aio_event);
        if (io_submit(c->aio, 1, &cb) == 1)
            return;
    }
    answer(c, r->buffer, write_plain(c, data, r->offset, r->bytes, 0));
}

static void end_write(struct child *c, const struct io_event *event)
{
    const struct iocb *cb = event->obj;
    unsigned buffer = (unsigned)(cb - c->cb);
    size_t bytes = cb->u.c.nbytes;
    long done = (long)event->res;
    if (TESTHOOK_FAIL("sink-short-write") && done > (long)DIRECT_ALIGN)
        done = DIRECT_ALIGN;
    if (done == -EINVAL)
        done = 0; /* write_plain() finds out what this file system minds */
    answer(c, buffer,
           done < 0 ? (int)done
                    : write_plain(c, cb->u.c.buf, (uint64_t)cb->u.c.offset, bytes, (size_t)done));
}

static void reap(struct child *c)
{
    struct timespec no_wait = {0};
    struct io_event event;
    eventfd_t count;
    eventfd_read(c->aio_event, &count);
    while (io_getevents(c->aio, 0, 1, &event, &no_wait) == 1)
        end_write(c, &event);
}

static int flush_file(const struct child *c, uint64_t file_bytes)
{
    if (!c->setup.stream && ftruncate(c->setup.fd, (off_t)file_bytes) < 0)
        return -errno;
    return fsync(c->setup.fd) < 0 ? -errno : 0;
}

/* false when the parent has closed its end. */
static bool serve(struct child *c)
{
    struct request r;
    ssize_t n = recv(c->socket, &r, sizeof(r), MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    if (n != sizeof(r))
        return false;
    if (r.buffer == SINK_WRITER_FLUSHED)
        answer(c, r.buffer, flush_file(c, r.bytes));
    else
        start_write(c, &r);
    return true;
}

static void run_child(void *opaque)
{
    struct child *c = opaque;
    prctl(PR_SET_NAME, "vmsnap-writer");
    try_direct(c);
    answer(c, SINK_WRITER_FLUSHED, 0); /* from here on we hold nothing of the parent's */
    struct pollfd fds[2] = {{.fd = c->socket, .events = POLLIN},
                            {.fd = c->aio_event, .events = POLLIN}};
    for (;;) {
        poll(fds, 2, -1);
        if (fds[1].revents)
            reap(c);
        if (fds[0].revents && !serve(c))
            _exit(0);
    }
}

/* ---- the parent ---- */

/* Until the child has closed its copies of our descriptors. */
static int await_child(struct sink_writer *w)
{
    struct sink_writer_reply ready;
    ssize_t n;
    do
        n = recv(w->socket, &ready, sizeof(ready), 0);
    while (n < 0 && errno == EINTR);
    return n == sizeof(ready) ? 0 : -EOWNERDEAD;
}

int sink_writer_start(struct sink_writer *w, const struct sink_writer_setup *setup)
{
    int sockets[2];
    *w = (struct sink_writer){.pidfd = -1, .socket = -1};
    struct child c = {.setup = *setup, .cb = calloc(setup->n_buffers, sizeof(*c.cb))};
    if (!c.cb)
        return -ENOMEM;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0) {
        free(c.cb);
        return -errno;
    }
    c.socket = sockets[1];
    w->socket = sockets[0];
    const int keep[] = {c.setup.fd, c.socket};
    int pidfd = child_fork(keep, 2, run_child, &c);
    close(c.socket);
    free(c.cb);
    if (pidfd < 0) {
        close(w->socket);
        return pidfd;
    }
    w->pidfd = pidfd;
    int r = await_child(w);
    if (r < 0)
        sink_writer_stop(w, 0);
    return r;
}

static int ask(struct sink_writer *w, struct request r)
{
    ssize_t n = send(w->socket, &r, sizeof(r), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n == sizeof(r))
        return 0;
    return errno == EPIPE || errno == ECONNRESET ? -EOWNERDEAD : -errno;
}

int sink_writer_write(struct sink_writer *w, unsigned buffer, uint64_t offset, size_t bytes)
{
    return ask(w, (struct request){.buffer = buffer, .offset = offset, .bytes = bytes});
}

int sink_writer_flush(struct sink_writer *w, uint64_t file_bytes)
{
    return ask(w, (struct request){.buffer = SINK_WRITER_FLUSHED, .bytes = file_bytes});
}

int sink_writer_reply(struct sink_writer *w, struct sink_writer_reply *reply)
{
    ssize_t n = recv(w->socket, reply, sizeof(*reply), MSG_DONTWAIT);
    if (n == sizeof(*reply))
        return 1;
    return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -EOWNERDEAD;
}

int sink_writer_stop(struct sink_writer *w, int grace_ms)
{
    if (w->pidfd < 0)
        return 0;
    close(w->socket);
    int r = child_end_patiently(w->pidfd, grace_ms);
    w->pidfd = -1;
    return r;
}
