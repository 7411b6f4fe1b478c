/*
 * mailbox.c - see mailbox.h.
 *
 * A descriptor comes with the first byte of the piece that it was sent with, and recvmsg() never
 * reads past a piece with descriptors. Firecracker sends all in one piece. A message without a
 * descriptor (old versions may send one first) is dropped when another follows.
 */
#include "restore/listen/mailbox.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"

int mailbox_open(struct mailbox *in, int connection, struct error *e)
{
    *in = (struct mailbox){.connection = connection, .bytes = malloc(PEER_MESSAGE_MAX_BYTES)};
    return in->bytes ? 0 : error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "no memory for a message");
}

void mailbox_drop_fds(struct mailbox *in)
{
    while (in->n_fds > 0)
        close(in->fds[--in->n_fds]);
}

void mailbox_close(struct mailbox *in)
{
    mailbox_drop_fds(in);
    free(in->bytes);
    if (in->connection >= 0)
        close(in->connection);
    *in = (struct mailbox){.connection = -1, .ended = true};
}

static void keep_fds(struct mailbox *in, struct cmsghdr *head)
{
    int fd;
    size_t n = (head->cmsg_len - CMSG_LEN(0)) / sizeof(fd);
    for (size_t i = 0; i < n; i++) {
        memcpy(&fd, CMSG_DATA(head) + i * sizeof(fd), sizeof(fd));
        if (in->n_fds < MAILBOX_FDS)
            in->fds[in->n_fds++] = fd;
        else
            close(fd);
    }
}

/* One piece. False: nothing is there now. */
static bool receive(struct mailbox *in)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(MAILBOX_FDS * sizeof(int))];
    } control;
    struct iovec data = {.iov_base = in->bytes + in->n_bytes,
                         .iov_len = PEER_MESSAGE_MAX_BYTES - in->n_bytes};
    struct msghdr m = {.msg_iov = &data,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof(control.bytes)};
    if (data.iov_len == 0)
        return false;
    ssize_t n = recvmsg(in->connection, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0)
        in->ended = errno != EAGAIN && errno != EINTR;
    if (n <= 0) {
        in->ended |= n == 0;
        return false;
    }
    for (struct cmsghdr *head = CMSG_FIRSTHDR(&m); head; head = CMSG_NXTHDR(&m, head))
        if (head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS)
            keep_fds(in, head);
    in->n_bytes += (size_t)n;
    return true;
}

static void drop_bytes(struct mailbox *in, size_t n)
{
    in->n_bytes -= n;
    memmove(in->bytes, in->bytes + n, in->n_bytes);
}

static int take_first(struct mailbox *in, const struct peer_message *m, int *fd)
{
    *fd = in->fds[0];
    memmove(in->fds, in->fds + 1, --in->n_fds * sizeof(in->fds[0]));
    drop_bytes(in, m->used_bytes);
    return 0;
}

/* What there is of a handoff: 0, -EAGAIN, or what is wrong with it. */
static int look(struct mailbox *in, struct peer_message *m, int *fd, struct error *e)
{
    for (;;) {
        int rc = in->n_bytes ? peer_message_parse(in->bytes, in->n_bytes, m, e) : -EAGAIN;
        if (rc)
            return rc;
        if (in->n_fds > 0)
            return take_first(in, m, fd);
        /* It may come with another message yet; but for that there must be room. */
        if (m->used_bytes == in->n_bytes && in->n_bytes < PEER_MESSAGE_MAX_BYTES)
            return -EAGAIN;
        drop_bytes(in, m->used_bytes);
    }
}

static int explain_end(const struct mailbox *in, struct error *e)
{
    if (mailbox_is_empty(in))
        return -ENODATA;
    return error_set(e, VMSNAP_EXIT_TARGET, EPROTO,
                     in->n_fds ? "the connection was closed in the middle of a handoff message"
                               : "a handoff message came without a userfaultfd");
}

int mailbox_take(struct mailbox *in, struct peer_message *m, int *fd, int end_fd, uint64_t until_ns,
                 struct error *e)
{
    bool ends = false;
    for (;;) {
        bool more = receive(in);
        int rc = look(in, m, fd, e);
        if (rc != -EAGAIN)
            return rc;
        if (more)
            continue;
        if (in->ended || (ends && mailbox_is_empty(in)))
            return explain_end(in, e);
        struct pollfd p[2] = {{.fd = in->connection, .events = POLLIN},
                              {.fd = ends ? -1 : end_fd, .events = POLLIN}};
        int left_ms = clock_ms_until(until_ns);
        if (left_ms == 0)
            return error_set(e, VMSNAP_EXIT_TIMEOUT, ETIMEDOUT, "no whole handoff message came%s",
                             in->n_bytes && in->n_fds == 0 ? ", nor a userfaultfd" : "");
        poll(p, 2, left_ms);
        ends |= p[1].revents != 0;
    }
}

bool mailbox_look(struct mailbox *in)
{
    char byte;
    ssize_t n = recv(in->connection, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        in->ended = true;
    return n > 0;
}

bool mailbox_is_empty(const struct mailbox *in)
{
    return in->n_bytes == 0 && in->n_fds == 0;
}
