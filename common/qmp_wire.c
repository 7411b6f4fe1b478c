/*
 * Framing. A QMP server ends each message with CRLF. By default a message is one line; with
 * `-mon ...,pretty=on` it goes over several, of which only the first starts with '{' in column 0
 * and only the last with '}'. So after each line that starts with a brace jansson is asked whether
 * the bytes from the message's start on are a whole object; "premature end" means to read on. That
 * covers both styles without a tokenizer of our own. The peer may be anything: the buffer is
 * bounded, and the deadline is looked at before each parse, so that neither a stream without
 * newlines nor one of pieces that never make an object holds us longer or larger than said.
 */
#include "common/qmp_wire.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"

#define READ_BYTES 16384u

void qmp_wire_init(struct qmp_wire *w, int fd)
{
    memset(w, 0, sizeof(*w));
    w->fd = fd;
}

void qmp_wire_close(struct qmp_wire *w)
{
    if (w->fd >= 0)
        close(w->fd);
    free(w->buf);
    qmp_wire_init(w, -1);
}

static int timed_out(struct error *e)
{
    return error_set(e, VMSNAP_EXIT_TIMEOUT, ETIMEDOUT, "no answer from the QMP server in time");
}

static int garbled(struct error *e, const char *what)
{
    return error_set(e, VMSNAP_EXIT_TARGET, EPROTO, "the QMP server sent %s", what);
}

/* Waits for `events` on the socket. */
static int wait_ready(const struct qmp_wire *w, short events, uint64_t deadline_ns, struct error *e)
{
    for (;;) {
        struct pollfd p = {.fd = w->fd, .events = events};
        int n = poll(&p, 1, clock_ms_until(deadline_ns));
        if (n > 0)
            return 0;
        if (n < 0 && errno != EINTR)
            return error_set(e, VMSNAP_EXIT_TARGET, errno, "cannot wait for the QMP server");
        if (clock_monotonic_ns() >= deadline_ns)
            return timed_out(e);
    }
}

int qmp_wire_wait(const struct qmp_wire *w, uint64_t deadline_ns)
{
    return wait_ready(w, POLLIN, deadline_ns, NULL);
}

static int make_room(struct qmp_wire *w, struct error *e)
{
    if (w->used >= QMP_WIRE_MAX_BYTES)
        return garbled(e, "a message longer than 4 MiB");
    if (w->capacity - w->used >= READ_BYTES)
        return 0;
    size_t capacity = w->capacity ? w->capacity * 2 : READ_BYTES;
    char *buf = realloc(w->buf, capacity);
    if (!buf)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot read from the QMP server");
    w->buf = buf;
    w->capacity = capacity;
    return 0;
}

/* Reads what is there, waiting for the first byte. */
static int fill(struct qmp_wire *w, uint64_t deadline_ns, struct error *e)
{
    int r = make_room(w, e);
    while (r == 0) {
        ssize_t n = recv(w->fd, w->buf + w->used, READ_BYTES, MSG_DONTWAIT);
        if (n > 0) {
            w->used += (size_t)n;
            return 0;
        }
        if (n == 0 || errno == ECONNRESET)
            return error_set(e, VMSNAP_EXIT_TARGET, EPIPE,
                             "the QMP server has closed the connection");
        if (errno != EAGAIN && errno != EINTR)
            return error_set(e, VMSNAP_EXIT_TARGET, errno, "cannot read from the QMP server");
        r = wait_ready(w, POLLIN, deadline_ns, e);
    }
    return r;
}

static void drop(struct qmp_wire *w, size_t len)
{
    memmove(w->buf, w->buf + len, w->used - len);
    w->used -= len;
    w->scanned = 0;
}

static bool is_blank(const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (s[i] != ' ' && s[i] != '\t' && s[i] != '\r' && s[i] != '\n')
            return false;
    return true;
}

/*
 * Looks at the bytes up to the line end at `end` (exclusive). 1: *message was there and is taken
 * out; 0: read on; -errno.
 */
static int try_parse(struct qmp_wire *w, size_t line, size_t end, json_t **message, struct error *e)
{
    if (line == 0 && is_blank(w->buf, end)) {
        drop(w, end);
        return 0;
    }
    char first = w->buf[line];
    if (w->skip_noise && line > 0 && first == '{')
        drop(w, line), end -= line; /* what came before never became an object */
    if (first != '{' && first != '}' && w->buf[0] == '{')
        return 0; /* in the middle of a pretty one */
    json_error_t je;
    json_t *m = json_loadb(w->buf, end, JSON_REJECT_DUPLICATES, &je);
    if (!m && json_error_code(&je) == json_error_premature_end_of_input && w->buf[0] == '{')
        return 0;
    drop(w, end);
    if (json_is_object(m)) {
        *message = m;
        return 1;
    }
    json_decref(m);
    return w->skip_noise ? 0 : garbled(e, "something that is not a JSON object");
}

/* Goes through the lines that are complete. As try_parse(). */
static int take_message(struct qmp_wire *w, uint64_t deadline_ns, json_t **message, struct error *e)
{
    size_t line = w->scanned;
    for (;;) {
        char *nl = w->used > line ? memchr(w->buf + line, '\n', w->used - line) : NULL;
        if (!nl)
            return 0;
        size_t end = (size_t)(nl - w->buf) + 1, before = w->used;
        int r = try_parse(w, line, end, message, e);
        if (r != 0)
            return r;
        if (clock_monotonic_ns() >= deadline_ns)
            return timed_out(e);
        line = end - (before - w->used); /* what was dropped is gone from the front */
        w->scanned = line;
    }
}

int qmp_wire_receive(struct qmp_wire *w, uint64_t deadline_ns, json_t **message, struct error *e)
{
    for (;;) {
        int r = take_message(w, deadline_ns, message, e);
        if (r != 0)
            return r < 0 ? r : 0;
        r = fill(w, deadline_ns, e);
        if (r < 0)
            return r;
    }
}

/* One sendmsg(), with the descriptor if there is one. */
static ssize_t send_some(int fd, const void *bytes, size_t len, int send_fd)
{
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.room = {0}};
    struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = len};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (send_fd >= 0) {
        msg.msg_control = control.room;
        msg.msg_controllen = sizeof(control.room);
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &send_fd, sizeof(int));
    }
    return sendmsg(fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
}

int qmp_wire_send(struct qmp_wire *w, const void *bytes, size_t len, int send_fd,
                  uint64_t deadline_ns, struct error *e)
{
    const char *p = bytes;
    while (len > 0) {
        ssize_t n = send_some(w->fd, p, len, send_fd);
        if (n > 0) {
            p += n;
            len -= (size_t)n;
            send_fd = -1;
            continue;
        }
        if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
            return error_set(e, VMSNAP_EXIT_TARGET, EPIPE,
                             "the QMP server has closed the connection");
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return error_set(e, VMSNAP_EXIT_TARGET, errno, "cannot write to the QMP server");
        int r = wait_ready(w, POLLOUT, deadline_ns, e);
        if (r < 0)
            return r;
    }
    return 0;
}
