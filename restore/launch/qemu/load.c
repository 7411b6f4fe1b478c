#include "restore/launch/qemu/load.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"

#define STREAM_FD_NAME "vmsnap-state"
#define POLL_US 500

static int timed_out(struct error *e)
{
    error_set(e, VMSNAP_EXIT_TIMEOUT, ETIMEDOUT, "the VMM has not taken the saved device state");
    error_hint(e, "--timeout gives it longer");
    return -ETIMEDOUT;
}

/* Gives QEMU the reading end of a pipe; *fd is the writing end. */
static int give_pipe(struct qmp *q, int *fd, int timeout_ms, struct error *e)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC))
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't make a pipe");
    CLEANUP_FD int reading = fds[0];
    CLEANUP_FD int writing = fds[1];
    int rc = qmp_command(q, "getfd", json_pack("{s:s}", "fdname", STREAM_FD_NAME), reading,
                         timeout_ms, NULL, e);
    if (rc)
        return rc;
    if (fcntl(writing, F_SETFL, O_NONBLOCK))
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't set up a pipe");
    *fd = take_fd(&writing);
    return 0;
}

/* Writes all, as fast as QEMU reads. */
static int send_stream(int fd, const struct target *t, const unsigned char *data, size_t len,
                       uint64_t deadline_ns, struct error *e)
{
    while (len > 0) {
        ssize_t n = write(fd, data, len);
        if (n > 0) {
            data += n;
            len -= (size_t)n;
            continue;
        }
        if (errno != EAGAIN && errno != EINTR) /* EPIPE: it gave up reading */
            return error_set(e, VMSNAP_EXIT_VMM, errno, "the VMM refused the saved device state");
        struct pollfd fds[2] = {{.fd = fd, .events = POLLOUT}, {.fd = t->pidfd, .events = POLLIN}};
        if (poll(fds, 2, clock_ms_until(deadline_ns)) == 0)
            return timed_out(e);
        if (fds[1].revents)
            return error_set(e, VMSNAP_EXIT_VMM, EPIPE, "the VMM refused the saved device state");
    }
    return 0;
}

/* 1: still loading, 0: loaded. */
static int still_loading(struct qmp *q, int timeout_ms, struct error *e)
{
    json_t *result = NULL;
    int rc = qmp_command(q, "query-status", NULL, -1, timeout_ms, &result, e);
    if (rc) {
        if (rc != -ETIMEDOUT)
            error_set(e, VMSNAP_EXIT_VMM, EPIPE, "the VMM refused the saved device state");
        return rc;
    }
    const char *status = json_string_value(json_object_get(result, "status"));
    int loading = status && strcmp(status, "inmigrate") == 0;
    json_decref(result);
    return loading;
}

static int wait_loaded(struct qmp *q, uint64_t deadline_ns, struct error *e)
{
    for (;;) {
        int left = clock_ms_until(deadline_ns);
        if (left == 0)
            return timed_out(e);
        int rc = still_loading(q, left, e);
        if (rc <= 0)
            return rc;
        usleep(POLL_US);
    }
}

int load_state(struct qmp *q, const struct target *t, const void *stream, size_t len,
               int timeout_ms, struct error *e)
{
    uint64_t deadline = clock_monotonic_ns() + (uint64_t)timeout_ms * 1000000u;
    int fd = -1;
    int rc = give_pipe(q, &fd, timeout_ms, e);
    if (rc)
        return rc;
    rc = qmp_command(q, "migrate-incoming", json_pack("{s:s}", "uri", "fd:" STREAM_FD_NAME), -1,
                     timeout_ms, NULL, e);
    if (rc == 0)
        rc = send_stream(fd, t, stream, len, deadline, e);
    close(fd); /* the stream's end */
    return rc ? rc : wait_loaded(q, deadline, e);
}

int load_continue(struct qmp *q, int timeout_ms, struct error *e)
{
    return qmp_command(q, "cont", NULL, -1, timeout_ms, NULL, e);
}
