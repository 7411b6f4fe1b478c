#include "common/child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Insertion: a handful, and qsort() may allocate. */
static void sort(int *fds, unsigned n)
{
    for (unsigned i = 1; i < n; i++)
        for (unsigned k = i; k > 0 && fds[k] < fds[k - 1]; k--) {
            int swap = fds[k];
            fds[k] = fds[k - 1];
            fds[k - 1] = swap;
        }
}

static void close_others(const int *keep, unsigned n)
{
    int sorted[CHILD_MAX_KEEP];
    memcpy(sorted, keep, n * sizeof(*keep));
    sort(sorted, n);
    unsigned next = 0;
    for (unsigned i = 0; i < n; i++) {
        unsigned kept = (unsigned)sorted[i];
        if (kept > next)
            close_range(next, kept - 1, 0);
        next = kept + 1;
    }
    close_range(next, ~0u, 0);
    for (int fd = 0; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            open("/dev/null", O_RDWR); /* takes the lowest number: this one */
}

pid_t child_fork(const int *keep, unsigned n, void (*run)(void *opaque), void *opaque)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pid_t pid = n > CHILD_MAX_KEEP ? (errno = E2BIG, -1) : fork();
    if (pid == 0) {
        close_others(keep, n);
        run(opaque);
        _exit(1);
    }
    int err = errno;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return pid < 0 ? -err : pid;
}

int child_end(pid_t pid, int grace_ms)
{
    struct pollfd ended = {.fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN};
    kill(pid, SIGKILL); /* not reaped by anybody else: still this process */
    bool gone = ended.fd < 0 || poll(&ended, 1, grace_ms) == 1;
    if (ended.fd >= 0)
        close(ended.fd);
    if (gone)
        waitpid(pid, NULL, 0);
    return gone ? 0 : -EBUSY;
}
