/*
 * sink_file.c - a sink's end in a file of its own.
 *
 * Where the file system has O_DIRECT, 1 MiB writes go through libaio, several in flight, and leave
 * the page cache to the guest. A write that extends a file is synchronous on ext4 (its size changes
 * under the inode lock): io_submit() of 1 MiB then took 0.50 ms in the median, and 0.06 ms inside
 * the file. So the file is kept longer than what is written, by fallocate() ahead of it; the end is
 * cut off before fsync. tmpfs takes O_DIRECT without being the better for it, other
 * file systems refuse it: there plain writes, each followed by a hint to start writeback, so that
 * the fsync at the end finds little left.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/publish.h"
#include "common/sink_internal.h"
#include "common/testhook.h"

#define DIRECT_ALIGN 4096u
#define MAX_DEPTH 8u
#define PREALLOCATE_BYTES (64ull << 20)

struct file_end {
    struct publish file;
    bool direct; /* O_DIRECT is set on the fd, and libaio is ready */
    bool preallocate;
    uint64_t allocated_end;
    io_context_t aio;
};

/* Keeps the file longer than what is written. Failing to is no error: the writes themselves tell
 * whether there is room. */
static void grow_ahead(struct file_end *f, uint64_t end)
{
    if (!f->preallocate || end <= f->allocated_end)
        return;
    uint64_t to = (end + PREALLOCATE_BYTES - 1) / PREALLOCATE_BYTES * PREALLOCATE_BYTES;
    if (fallocate(f->file.fd, 0, (off_t)f->allocated_end, (off_t)(to - f->allocated_end)) == 0)
        f->allocated_end = to;
    else
        f->preallocate = false;
}

static void stop_direct(struct file_end *f)
{
    int flags = fcntl(f->file.fd, F_GETFL);
    fcntl(f->file.fd, F_SETFL, flags & ~O_DIRECT);
    f->direct = false;
}

/* Writes what is left of a buffer after `done` bytes, waiting for it. Returns 1 or -errno. */
static int write_plain(struct file_end *f, const struct sink_buffer *b, size_t done)
{
    while (done < b->write_bytes) {
        size_t len = b->write_bytes - done;
        if (!f->direct && TESTHOOK_FAIL("sink-short-write") && len > 1)
            len /= 2;
        ssize_t n = pwrite(f->file.fd, b->data + done, len, (off_t)(b->offset + done));
        if (n >= 0)
            done += (size_t)n;
        else if (errno == EINVAL && f->direct)
            stop_direct(f); /* not aligned as this file system wants it */
        else if (errno != EINTR)
            return -errno;
    }
    if (!f->direct)
        sync_file_range(f->file.fd, (off_t)b->offset, (off_t)b->write_bytes, SYNC_FILE_RANGE_WRITE);
    return 1;
}

static int file_write(struct sink *s, struct sink_buffer *b)
{
    struct file_end *f = s->end;
    if (TESTHOOK_FAIL("sink-enospc"))
        return -ENOSPC;
    if (TESTHOOK_FAIL("sink-eio"))
        return -EIO;
    b->write_bytes = b->used_bytes;
    grow_ahead(f, b->offset + b->used_bytes);
    if (!f->direct)
        return write_plain(f, b, 0);
    b->write_bytes = (b->used_bytes + DIRECT_ALIGN - 1) / DIRECT_ALIGN * DIRECT_ALIGN;
    memset(b->data + b->used_bytes, 0, b->write_bytes - b->used_bytes);
    struct iocb *cb = &b->cb;
    io_prep_pwrite(cb, f->file.fd, b->data, b->write_bytes, (long long)b->offset);
    io_set_eventfd(cb, s->event_fd);
    cb->data = b;
    return io_submit(f->aio, 1, &cb) == 1 ? 0 : write_plain(f, b, 0);
}

static int file_reap(struct sink *s, struct sink_buffer **b)
{
    struct file_end *f = s->end;
    struct timespec no_wait = {0};
    struct io_event event;
    int n = io_getevents(f->aio, 0, 1, &event, &no_wait);
    if (n == -EINTR)
        return 0;
    if (n <= 0)
        return n;
    *b = event.data;
    long done = (long)event.res;
    if (TESTHOOK_FAIL("sink-short-write") && done > (long)DIRECT_ALIGN)
        done = DIRECT_ALIGN;
    if (done == (long)(*b)->write_bytes)
        return 1;
    if (done == -EINVAL)
        done = 0; /* write_plain() finds out what this file system minds */
    return done < 0 ? (int)done : write_plain(f, *b, (size_t)done);
}

static int file_flush(struct sink *s)
{
    struct file_end *f = s->end;
    if (ftruncate(f->file.fd, (off_t)sink_offset(s)) < 0)
        return -errno;
    TESTHOOK_POINT("sink-before-fsync");
    if (TESTHOOK_FAIL("sink-fsync"))
        return -EIO;
    return fsync(f->file.fd) < 0 ? -errno : 0;
}

static int file_publish(struct sink *s, struct error *e)
{
    struct file_end *f = s->end;
    return publish_link(&f->file, e);
}

static void file_close(struct sink *s)
{
    struct file_end *f = s->end;
    if (f->aio)
        io_destroy(f->aio);
    publish_close(&f->file);
    free(f);
}

static const struct sink_ops file_ops = {.write = file_write,
                                         .reap = file_reap,
                                         .flush = file_flush,
                                         .publish = file_publish,
                                         .close = file_close};

/* Uses O_DIRECT and libaio if both are to be had. */
static void try_direct(struct file_end *f)
{
    struct statfs fs;
    int flags = fcntl(f->file.fd, F_GETFL);
    if (TESTHOOK_MASKED("file.direct") || fstatfs(f->file.fd, &fs) < 0 ||
        fs.f_type == TMPFS_MAGIC || io_setup(MAX_DEPTH, &f->aio) < 0)
        return;
    f->direct = fcntl(f->file.fd, F_SETFL, flags | O_DIRECT) == 0;
    f->preallocate = f->direct;
}

int sink_open_file(struct sink **out, const char *path, const struct sink_options *options,
                   struct error *e)
{
    struct file_end *f = calloc(1, sizeof(*f));
    if (!f)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "writing %s", path);
    int r = publish_open(&f->file, path, options->overwrite, e);
    if (r < 0) {
        free(f);
        return r;
    }
    try_direct(f);
    unsigned depth = options->n_buffers - 1 < MAX_DEPTH ? options->n_buffers - 1 : MAX_DEPTH;
    return sink_start(out, &file_ops, f, path, f->file.temporary, f->direct ? depth : 1, options,
                      e);
}
