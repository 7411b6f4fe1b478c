/*
 * file.c - a sink's end in a file: a new one that is published at commit, or the one that
 * standard output was redirected to. The file I/O itself is done by a process of its own
 * (sink/writer.h); here it is asked for and waited for, so that a cancel is always seen.
 */
#include "common/sink/file.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/publish.h"
#include "common/sink/internal.h"
#include "common/sink/writer.h"
#include "common/testhook.h"

#define STOP_GRACE_MS 1000

struct file_end {
    struct publish file; /* fd -1 for a redirect */
    int redirect;        /* the descriptor we were given, not ours to close; else -1 */
    struct sink_writer writer;
};

/*
 * For linking a name is all we need: closing a file that was written to may wait for its file
 * system (NFS flushes at close), and a process that ends closes its files one after the other.
 */
static void keep_only_path(struct publish *p)
{
    char proc[32];
    snprintf(proc, sizeof(proc), "/proc/self/fd/%d", p->fd);
    int fd = open(proc, O_PATH | O_CLOEXEC);
    if (fd < 0)
        return; /* no /proc: it works all the same while nothing hangs */
    close(p->fd);
    p->fd = fd;
}

static int file_start(struct sink *s)
{
    struct file_end *f = s->end;
    const struct sink_writer_setup setup = {.fd = f->redirect >= 0 ? f->redirect : f->file.fd,
                                            .stream = f->redirect >= 0,
                                            .arena = s->arena,
                                            .n_buffers = s->n_buffers};
    int r = sink_writer_start(&f->writer, &setup);
    s->reply_fd = f->writer.socket;
    if (r == 0 && f->redirect < 0)
        keep_only_path(&f->file);
    return r;
}

static int file_write(struct sink *s, struct sink_buffer *b)
{
    struct file_end *f = s->end;
    if (TESTHOOK_FAIL("sink-enospc"))
        return -ENOSPC;
    if (TESTHOOK_FAIL("sink-eio"))
        return -EIO;
    return sink_writer_write(&f->writer, (unsigned)(b - s->buffers), b->offset, b->used_bytes);
}

static int file_reap(struct sink *s, struct sink_buffer **b)
{
    struct file_end *f = s->end;
    struct sink_writer_reply reply;
    int r = sink_writer_reply(&f->writer, &reply);
    if (r <= 0)
        return r;
    *b = &s->buffers[reply.buffer];
    return reply.result < 0 ? reply.result : 1;
}

static int file_flush(struct sink *s)
{
    struct file_end *f = s->end;
    struct sink_writer_reply reply;
    TESTHOOK_POINT("sink-before-fsync");
    if (TESTHOOK_FAIL("sink-fsync"))
        return -EIO;
    int r = sink_writer_flush(&f->writer, sink_offset(s));
    if (r < 0)
        return r;
    while ((r = sink_writer_reply(&f->writer, &reply)) == 0) {
        if (sink_failure(s) != 0)
            return -ECANCELED;
        sink_wait(s, s->reply_fd, POLLIN);
    }
    return r < 0 ? r : reply.result;
}

static int file_publish(struct sink *s, struct error *e)
{
    struct file_end *f = s->end;
    return f->redirect >= 0 ? 0 : publish_link(&f->file, e);
}

/* The writer first: it may still be changing the file. Where it hangs, removing a hidden name would
 * hang too: that is left to whoever was told of it (sink_temporary_path()). */
static int file_close(struct sink *s)
{
    struct file_end *f = s->end;
    int r = sink_writer_stop(&f->writer, STOP_GRACE_MS);
    if (r < 0)
        f->file.linked = false;
    if (f->redirect < 0)
        publish_close(&f->file);
    free(f);
    return r;
}

static const struct sink_ops file_ops = {.start = file_start,
                                         .write = file_write,
                                         .reap = file_reap,
                                         .flush = file_flush,
                                         .publish = file_publish,
                                         .close = file_close};

static struct file_end *new_end(int redirect, const char *name, struct error *e)
{
    struct file_end *f = calloc(1, sizeof(*f));
    if (!f) {
        error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "writing %s", name);
        return NULL;
    }
    f->redirect = redirect;
    f->writer.pidfd = -1;
    return f;
}

int sink_open_file(struct sink **out, const char *path, const struct sink_options *options,
                   struct error *e)
{
    struct file_end *f = new_end(-1, path, e);
    if (!f)
        return -ENOMEM;
    int r = publish_open(&f->file, path, options->overwrite, e);
    if (r < 0) {
        free(f);
        return r;
    }
    return sink_start(out, &file_ops, f, path, f->file.temporary, SINK_WRITER_DEPTH, options, e);
}

int sink_open_redirect(struct sink **out, int fd, const char *name,
                       const struct sink_options *options, struct error *e)
{
    struct file_end *f = new_end(fd, name, e);
    if (!f)
        return -ENOMEM;
    return sink_start(out, &file_ops, f, name, NULL, SINK_WRITER_DEPTH, options, e);
}
