/*
 * pipe.c - a sink's end at a descriptor that somebody else opened: a pipe, a socket, a
 * terminal (a regular file is sink/file.c's). Never blocks where the descriptor can tell that it
 * would, so that a cancel is seen: a pipe is opened again through /proc for flags of our own
 * (setting O_NONBLOCK on the one we were given would set it for everyone who shares it); a socket
 * has MSG_DONTWAIT; a terminal does not wait for ever.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/sink/file.h"
#include "common/sink/internal.h"
#include "common/testhook.h"

struct pipe_end {
    int fd;
    bool owned; /* opened by us */
    bool socket;
    bool blocking; /* a pipe that could not be opened again: only PIPE_BUF after POLLOUT */
};

static ssize_t write_piece(const struct pipe_end *p, const uint8_t *data, size_t len)
{
    if (TESTHOOK_FAIL("sink-enospc"))
        errno = ENOSPC;
    else if (TESTHOOK_FAIL("sink-eio"))
        errno = EIO;
    else if (p->socket)
        return send(p->fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
    else
        return write(p->fd, data, TESTHOOK_FAIL("sink-short-write") && len > 1 ? len / 2 : len);
    return -1;
}

static int pipe_write(struct sink *s, struct sink_buffer *b)
{
    const struct pipe_end *p = s->end;
    for (size_t done = 0; done < b->used_bytes;) {
        size_t n_bytes = b->used_bytes - done;
        if (sink_failure(s) != 0)
            return -ECANCELED;
        if (p->blocking) {
            if (sink_wait(s, p->fd, POLLOUT) == 0)
                continue;
            n_bytes = n_bytes < PIPE_BUF ? n_bytes : PIPE_BUF;
        }
        ssize_t n = write_piece(p, b->data + done, n_bytes);
        if (n >= 0)
            done += (size_t)n;
        else if (errno != EAGAIN && errno != EINTR)
            return -errno;
        else if (errno == EAGAIN)
            sink_wait(s, p->fd, POLLOUT);
    }
    return 1;
}

static int pipe_flush(struct sink *s)
{
    (void)s;
    return TESTHOOK_FAIL("sink-fsync") ? -EIO : 0; /* what is in the pipe is the reader's */
}

static int pipe_close(struct sink *s)
{
    struct pipe_end *p = s->end;
    if (p->owned)
        close(p->fd);
    free(p);
    return 0;
}

static const struct sink_ops pipe_ops = {
    .write = pipe_write, .flush = pipe_flush, .close = pipe_close};

static void make_nonblocking(struct pipe_end *p)
{
    char path[32];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", p->fd);
    int own = TESTHOOK_MASKED("pipe.reopen") ? -1 : open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (own >= 0) {
        p->fd = own;
        p->owned = true;
    } else {
        p->blocking = true;
    }
}

int sink_open_fd(struct sink **out, int fd, const struct sink_options *options, struct error *e)
{
    struct stat st;
    char name[32];
    snprintf(name, sizeof(name), fd == STDOUT_FILENO ? "standard output" : "descriptor %d", fd);
    if (fstat(fd, &st) < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "%s", name);
    if (S_ISREG(st.st_mode))
        return sink_open_redirect(out, fd, name, options, e);
    struct pipe_end *p = calloc(1, sizeof(*p));
    if (!p)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "%s", name);
    *p = (struct pipe_end){.fd = fd, .socket = S_ISSOCK(st.st_mode)};
    if (S_ISFIFO(st.st_mode))
        make_nonblocking(p);
    return sink_start(out, &pipe_ops, p, name, NULL, 1, options, e);
}
