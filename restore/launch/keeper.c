/*
 * keeper.c - see keeper.h.
 *
 * Until the guest runs, a stopped VMM is of no use to anybody, and nobody knows of it but us. A
 * parent-death signal would not do: it does not reach a VMM behind a wrapper, the kernel drops it
 * when the user is changed, and it could not be taken back safely once the guest runs.
 *
 * The line is a pipe: pids, then 0 ("dismissed"); its end without that is our death. The keeper is
 * forked before the VMM and must not be our child, since we wait for all of those.
 */
#include "restore/launch/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"

#define WATCHED_MAX 8 /* the child and the VMM are two */
#define MAX_DEPTH 32  /* of wrappers */

struct watched {
    pid_t pid;
    int pidfd;
};

/* Descendants first: once its parent is gone a process can't be found any more. */
static void kill_tree(pid_t pid, int depth)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)pid, (int)pid);
    CLEANUP_STREAM FILE *f = fopen(path, "re");
    int child;
    while (f && depth < MAX_DEPTH && fscanf(f, "%d", &child) == 1)
        kill_tree(child, depth + 1);
    kill(pid, SIGKILL);
}

/* A pidfd tells whether the number still means the process that it meant. */
static void kill_watched(const struct watched *w)
{
    struct pollfd ended = {.fd = w->pidfd, .events = POLLIN};
    if (w->pidfd >= 0 && poll(&ended, 1, 0) == 0)
        kill_tree(w->pid, 0);
}

static void watch(struct watched *list, unsigned *n, pid_t pid)
{
    if (*n < WATCHED_MAX)
        list[(*n)++] = (struct watched){pid, (int)syscall(SYS_pidfd_open, pid, 0)};
}

static _Noreturn void run_keeper(int fd, const char *directory, const char *socket_path)
{
    struct watched list[WATCHED_MAX];
    unsigned n_watched = 0;
    pid_t pid;
    for (;;) {
        ssize_t n = read(fd, &pid, sizeof(pid));
        if (n < 0 && errno == EINTR)
            continue;
        if (n != (ssize_t)sizeof(pid))
            break;
        if (pid == 0)
            _exit(0);
        watch(list, &n_watched, pid);
    }
    /* The VMM was named last: it goes first, while whoever started it is still there. */
    while (n_watched > 0)
        kill_watched(&list[--n_watched]);
    unlink(socket_path);
    rmdir(directory);
    _exit(0);
}

/* Nothing of the caller's stays open in it, and no signal of a terminal or a user reaches it. */
static _Noreturn void become_keeper(int fd, const char *directory, const char *socket_path)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    setsid();
    prctl(PR_SET_NAME, "vmsnap-keeper");
    if (dup2(fd, 0) < 0)
        _exit(1);
    syscall(SYS_close_range, 1u, ~0u, 0u);
    if (chdir("/"))
        _exit(1);
    run_keeper(0, directory, socket_path);
}

int keeper_start(int *fd, const char *directory, const char *socket_path)
{
    int fds[2];
    *fd = -1;
    if (pipe2(fds, O_CLOEXEC))
        return -errno;
    pid_t between = fork();
    if (between == 0) {
        pid_t keeper = fork();
        if (keeper == 0)
            become_keeper(fds[0], directory, socket_path);
        _exit(keeper < 0);
    }
    int rc = between < 0 ? -errno : 0;
    close(fds[0]);
    int status = 0;
    while (rc == 0 && waitpid(between, &status, 0) < 0)
        rc = errno == EINTR ? 0 : -errno;
    if (rc == 0 && status != 0)
        rc = -EAGAIN;
    if (rc)
        close(fds[1]);
    else
        *fd = fds[1];
    return rc;
}

static void tell(int fd, pid_t pid)
{
    ssize_t n = write(fd, &pid, sizeof(pid)); /* SIGPIPE is ignored: a keeper that was killed */
    (void)n;
}

void keeper_watch(int fd, pid_t pid)
{
    if (fd >= 0)
        tell(fd, pid);
}

void keeper_dismiss(int *fd)
{
    if (*fd < 0)
        return;
    tell(*fd, 0);
    close(*fd);
    *fd = -1;
}
