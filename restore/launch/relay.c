#include "restore/launch/relay.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/thread.h"

/* Whether our stderr takes something. Who reads it may have stopped to: that must not keep us from
 * ending. */
static bool await_room(const struct relay *r)
{
    struct pollfd fds[2] = {{.fd = STDERR_FILENO, .events = POLLOUT},
                            {.fd = r->stop_fd, .events = POLLIN}};
    while (poll(fds, 2, -1) < 0)
        ;
    return fds[0].revents != 0;
}

/* False at the end, or (non-blocking) when nothing is there, or when it can't be passed on. */
static bool pass_on(const struct relay *r)
{
    char buf[PIPE_BUF]; /* what a pipe that takes something takes as a whole */
    ssize_t n = read(r->read_fd, buf, sizeof(buf));
    if (n <= 0 || !await_room(r))
        return false;
    n = write(STDERR_FILENO, buf, (size_t)n);
    (void)n; /* nowhere left to say it */
    return true;
}

static void *run_relay(void *opaque)
{
    struct relay *r = opaque;
    for (;;) {
        struct pollfd fds[2] = {{.fd = r->read_fd, .events = POLLIN},
                                {.fd = r->stop_fd, .events = POLLIN}};
        if (poll(fds, 2, -1) < 0)
            continue;
        if (fds[0].revents && pass_on(r))
            continue;
        if (fds[0].revents || fds[1].revents)
            return NULL;
    }
}

int relay_start(struct relay *r, int *fd)
{
    int fds[2];
    *r = (struct relay){.read_fd = -1, .stop_fd = -1};
    if (pipe2(fds, O_CLOEXEC))
        return -errno;
    r->read_fd = fds[0];
    r->stop_fd = eventfd(0, EFD_CLOEXEC);
    int rc = r->stop_fd < 0 || fcntl(r->read_fd, F_SETFL, O_NONBLOCK) ? -errno : 0;
    if (rc == 0)
        rc = thread_start(&r->thread, run_relay, r);
    r->started = rc == 0;
    if (rc) {
        close(fds[1]);
        relay_stop(r);
        return rc;
    }
    *fd = fds[1];
    return 0;
}

void relay_stop(struct relay *r)
{
    uint64_t one = 1;
    if (r->started) {
        ssize_t n = write(r->stop_fd, &one, sizeof(one));
        (void)n; /* a fresh counter is never full */
        pthread_join(r->thread, NULL);
        close(r->read_fd);
        close(r->stop_fd);
    } else {
        if (r->read_fd > 0)
            close(r->read_fd);
        if (r->stop_fd > 0)
            close(r->stop_fd);
    }
    *r = (struct relay){.read_fd = -1, .stop_fd = -1};
}
