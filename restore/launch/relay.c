#include "restore/launch/relay.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/thread.h"

/* False at the end, or (non-blocking) when nothing is there. */
static bool pass_on(int fd)
{
    char buf[4096];
    ssize_t n = read(fd, buf, sizeof(buf));
    if (n <= 0)
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
        if (fds[0].revents && pass_on(r->read_fd))
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
