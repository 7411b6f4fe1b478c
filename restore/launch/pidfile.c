#include "restore/launch/pidfile.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"

#define TEXT_MAX 32
#define AGE_SLACK_NS 1000000000ull /* of a file's time and a process's */

/* ---- what may be there already ---- */

uint64_t pidfile_process_started_ns(pid_t pid)
{
    char name[32], text[1024];
    snprintf(name, sizeof(name), "/proc/%d/stat", (int)pid);
    CLEANUP_FD int fd = open(name, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    if (n <= 0)
        return 0;
    text[n] = '\0';
    char state = 'X'; /* proc(5): field 3; one that nobody has waited for yet has ended */
    unsigned long long ticks = 0; /* field 22, since the boot; the name may hold anything */
    const char *after = strrchr(text, ')');
    if (!after ||
        sscanf(after + 1,
               " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s "
               "%*s %llu",
               &state, &ticks) != 2 ||
        state == 'Z' || state == 'X')
        return 0;
    struct timespec boot;
    clock_gettime(CLOCK_BOOTTIME, &boot);
    uint64_t up_ns = (uint64_t)boot.tv_sec * 1000000000u + (uint64_t)boot.tv_nsec;
    return clock_realtime_ns() - up_ns + ticks * (1000000000u / (uint64_t)sysconf(_SC_CLK_TCK));
}

/* The process that the file names, -1 if it says something else; 0: it is empty. */
static pid_t read_pid(int fd)
{
    char text[TEXT_MAX + 1];
    ssize_t n = pread(fd, text, sizeof(text), 0);
    if (n <= 0 || n == (ssize_t)sizeof(text))
        return n == 0 ? 0 : -1;
    text[n] = '\0';
    size_t digits = strspn(text, "0123456789");
    bool plain = digits > 0 && digits < 11 && text[digits + strspn(text + digits, "\n")] == '\0';
    long long pid = plain ? strtoll(text, NULL, 10) : -1;
    return pid > INT_MAX ? INT_MAX : (pid_t)pid;
}

static int refuse(const char *path, const char *what, struct error *e)
{
    error_set(e, VMSNAP_EXIT_FAILED, 0, "--pidfile: %s is %s", path, what);
    error_hint(e, "name another file");
    return -EEXIST;
}

/* A process that is younger than the file has only inherited the number. */
static int check_content(int fd, const char *path, struct error *e)
{
    struct stat st;
    if (fstat(fd, &st))
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't look at %s", path);
    if (!S_ISREG(st.st_mode))
        return refuse(path, "no regular file", e);
    pid_t pid = read_pid(fd);
    if (pid < 0)
        return refuse(path, "there and is no pidfile", e);
    uint64_t written_ns = (uint64_t)st.st_mtim.tv_sec * 1000000000u + (uint64_t)st.st_mtim.tv_nsec;
    uint64_t began_ns = pid > 0 ? pidfile_process_started_ns(pid) : 0;
    if (began_ns == 0 || began_ns > written_ns + AGE_SLACK_NS)
        return 0;
    error_set(e, VMSNAP_EXIT_BUSY, 0, "--pidfile: %s is that of process %d, which lives", path,
              (int)pid);
    error_hint(e, "name another file");
    return -EBUSY;
}

static int refuse_writing(const char *path, int err, struct error *e)
{
    bool full = err == ENOSPC || err == EDQUOT;
    error_set(e, full ? VMSNAP_EXIT_NO_SPACE : VMSNAP_EXIT_FAILED, err, "can't write %s", path);
    error_hint(e, full ? "make room there, or name a file elsewhere"
                       : "name a file in a directory that is there and that you may write to");
    return -err;
}

/* *made: it was not there before. The descriptor, or -errno. */
static int open_to_write(const char *path, bool *made, struct error *e)
{
    int flags = O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    int fd = open(path, flags | O_EXCL, 0644);
    *made = fd >= 0;
    if (fd < 0 && errno == EEXIST)
        fd = open(path, flags, 0644);
    if (fd < 0)
        return refuse_writing(path, errno, e);
    int rc = *made ? 0 : check_content(fd, path, e);
    if (rc == 0)
        return fd;
    close(fd);
    return rc;
}

/* Whether it has its name still, and no other restore has written its number meanwhile. */
static bool is_empty_there(int fd, const char *path)
{
    struct stat ours, there;
    return fstat(fd, &ours) == 0 && stat(path, &there) == 0 && ours.st_dev == there.st_dev &&
           ours.st_ino == there.st_ino && ours.st_size == 0;
}

int pidfile_check(const char *path, struct error *e)
{
    bool made;
    int rc = 0, fd = open_to_write(path, &made, e);
    if (fd < 0)
        return fd;
    /* A file that holds a number has room for another one. File systems that can't tell: later. */
    if (made && fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, TEXT_MAX) &&
        (errno == ENOSPC || errno == EDQUOT))
        rc = refuse_writing(path, errno, e);
    if (made && is_empty_there(fd, path))
        unlink(path);
    close(fd);
    return rc;
}

/* ---- ours ---- */

static int write_text(const struct pidfile *p)
{
    char text[TEXT_MAX];
    int len = snprintf(text, sizeof(text), "%d\n", p->pid);
    ssize_t n = pwrite(p->fd, text, (size_t)len, 0);
    if (n != len)
        return n < 0 ? -errno : -ENOSPC;
    return ftruncate(p->fd, len) ? -errno : 0;
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
    bool made;
    int fd = open_to_write(path, &made, e);
    *p = (struct pidfile){0};
    if (fd < 0)
        return fd;
    *p = (struct pidfile){
        .path = path, .fd = fd, .vmm = fcntl(vmm->pidfd, F_DUPFD_CLOEXEC, 0), .pid = vmm->pid};
    int rc = p->vmm < 0 ? -errno : write_text(p);
    if (rc == 0)
        return 0;
    unlink(path);
    forget(p);
    return refuse_writing(path, -rc, e);
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
