/*
 * child.c - see child.h.
 *
 * A raw clone(2): fork() of the C library always asks for SIGCHLD as the signal of the end, and
 * only children with that one are seen by a wait without __WALL (wait(2)). What fork() does beyond
 * the system call, locks of malloc and handlers of pthread_atfork(), is for a child that does more
 * than system calls.
 */
#include "common/child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/thread.h"

#define LOOK_MS 50

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

/* As fork(); *pidfd is the parent's, close-on-exec. With no stack and nothing to set for threads
 * the arguments are in the same order on x86 and arm64. */
static pid_t fork_unseen(int *pidfd)
{
    return (pid_t)syscall(SYS_clone, (unsigned long)CLONE_PIDFD, NULL, pidfd, NULL, NULL);
}

int child_fork(const int *keep, unsigned n, void (*run)(void *opaque), void *opaque)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int pidfd = -1;
    pid_t pid = n > CHILD_MAX_KEEP ? (errno = E2BIG, -1) : fork_unseen(&pidfd);
    if (pid == 0) {
        close_others(keep, n);
        run(opaque);
        _exit(1);
    }
    int err = errno;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return pid < 0 ? -err : pidfd;
}

static void reap(int pidfd)
{
    siginfo_t info;
    waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED | WNOHANG | __WALL);
    close(pidfd);
}

void child_kill(int pidfd)
{
    syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
}

int child_end(int pidfd, int grace_ms)
{
    struct pollfd ended = {.fd = pidfd, .events = POLLIN};
    child_kill(pidfd);
    bool gone = poll(&ended, 1, grace_ms) == 1;
    reap(pidfd);
    return gone ? 0 : -EBUSY;
}

/* pidfd_open(2), "fdinfo". 0: it can't be told. */
static pid_t pid_of(int pidfd)
{
    char path[48], text[512];
    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
    int fd = open(path, O_RDONLY | O_CLOEXEC), pid = 0;
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    if (fd >= 0)
        close(fd);
    text[n > 0 ? n : 0] = '\0';
    const char *line = strstr(text, "\nPid:");
    return line && sscanf(line, " Pid: %d", &pid) == 1 && pid > 0 ? pid : 0;
}

bool child_is_starved(int pidfd)
{
    pid_t pid = pid_of(pidfd);
    return pid && thread_is_starved(pid);
}

/* On its way out it may sleep for a moment: one that is seen to sleep twice in a row hangs. */
int child_end_patiently(int pidfd, int grace_ms)
{
    struct pollfd ended = {.fd = pidfd, .events = POLLIN};
    child_kill(pidfd);
    bool gone = poll(&ended, 1, grace_ms) == 1;
    pid_t pid = gone ? 0 : pid_of(pidfd);
    int asleep = 0;
    for (int ms = 0; !gone && pid && asleep < 2 && ms < THREAD_STARVED_MS; ms += LOOK_MS) {
        gone = poll(&ended, 1, LOOK_MS) == 1;
        asleep = thread_is_starved(pid) ? 0 : asleep + 1;
    }
    reap(pidfd);
    return gone ? 0 : -EBUSY;
}

void child_leave(int pidfd)
{
    reap(pidfd);
}
