#include "restore/launch/pidfile.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define TEXT_MAX 32

static int write_text(const struct pidfile *p)
{
    char text[TEXT_MAX];
    int len = snprintf(text, sizeof(text), "%d\n", p->pid);
    ssize_t n = write(p->fd, text, (size_t)len);
    return n == len ? 0 : n < 0 ? -errno : -ENOSPC;
}

static void forget(struct pidfile *p)
{
    if (p->fd >= 0)
        close(p->fd);
    if (p->vmm >= 0)
        close(p->vmm);
    *p = (struct pidfile){0};
}

int pidfile_write(struct pidfile *p, const char *path, const struct target *vmm, struct error *e)
{
    *p = (struct pidfile){.path = path,
                          .fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644),
                          .vmm = fcntl(vmm->pidfd, F_DUPFD_CLOEXEC, 0),
                          .pid = vmm->pid};
    int rc = p->fd < 0 || p->vmm < 0 ? -errno : write_text(p);
    if (rc == 0)
        return 0;
    if (p->fd >= 0)
        unlink(path);
    forget(p);
    return error_set(e, VMSNAP_EXIT_FAILED, -rc, "can't write %s", path);
}

/* Whether the name still leads to the file that was written, and nobody has written it since. */
static bool is_still_ours(const struct pidfile *p)
{
    struct stat there, ours;
    char text[TEXT_MAX], wanted[TEXT_MAX];
    if (stat(p->path, &there) || fstat(p->fd, &ours) || there.st_dev != ours.st_dev ||
        there.st_ino != ours.st_ino)
        return false;
    int len = snprintf(wanted, sizeof(wanted), "%d\n", p->pid);
    return pread(p->fd, text, sizeof(text), 0) == len && memcmp(text, wanted, (size_t)len) == 0;
}

int pidfile_adopt(struct pidfile *p, const char *path, pid_t pid, int vmm)
{
    *p = (struct pidfile){.path = path,
                          .fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK),
                          .vmm = fcntl(vmm, F_DUPFD_CLOEXEC, 0),
                          .pid = pid};
    int rc = p->fd < 0 || p->vmm < 0 ? -errno : is_still_ours(p) ? 0 : -ESTALE;
    if (rc)
        forget(p);
    return rc;
}

void pidfile_remove(struct pidfile *p)
{
    if (!p->path)
        return;
    if (is_still_ours(p))
        unlink(p->path);
    forget(p);
}

/* Children that have ended, and those that will: the VMM, and what came to us from its wrapper. */
static void leave_children(void)
{
    prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0);
    signal(SIGCHLD, SIG_IGN);
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
}

static void keep_only(int a, int b)
{
    unsigned first = (unsigned)(a < b ? a : b), last = (unsigned)(a < b ? b : a);
    if (first > STDERR_FILENO + 1)
        close_range(STDERR_FILENO + 1, first - 1, 0);
    if (last > first + 1)
        close_range(first + 1, last - 1, 0);
    close_range(last + 1, ~0u, 0);
}

void pidfile_stay(struct pidfile *p)
{
    sigset_t none;
    if (!p->path)
        return;
    leave_children();
    prctl(PR_SET_NAME, "vmsnap-pidfile");
    keep_only(p->fd, p->vmm);
    malloc_trim(0);
    sigemptyset(&none);
    pthread_sigmask(SIG_SETMASK, &none, NULL);
    struct pollfd vmm = {.fd = p->vmm, .events = POLLIN};
    while (poll(&vmm, 1, -1) <= 0)
        ;
    pidfile_remove(p);
}
