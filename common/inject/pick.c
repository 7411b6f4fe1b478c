/*
 * pick.c - which thread to stop. Every thread in a system call will do; some calls take an
 * interruption better than others, should we be killed at the wrong moment (inject/x86_restart.c).
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#include "common/cleanup.h"
#include "common/inject/tracer.h"

enum rank {
    RANK_EXACT, /* waits in a call that comes back as if nothing had been */
    RANK_TIMED, /* its timeout begins anew if we are killed meanwhile */
    RANK_EINTR, /* its call ends with EINTR if we are killed before the frame is in place */
    RANK_OTHER, /* running, or in a call that is not known here */
    RANK_NEVER, /* can't stop now */
};

struct candidate {
    pid_t tid;
    enum rank rank;
};

static enum rank rank_futex(const uint64_t *args)
{
    uint64_t op = args[1] & FUTEX_CMD_MASK;
    bool waits = op == FUTEX_WAIT || op == FUTEX_WAIT_BITSET;
    return waits && args[3] == 0 ? RANK_EXACT : RANK_TIMED;
}

static enum rank rank_call(long nr, const uint64_t *args)
{
    switch (nr) {
    case SYS_futex:
        return rank_futex(args);
    case SYS_poll:
        return (int)args[2] < 0 ? RANK_EXACT : RANK_TIMED;
    case SYS_ppoll: /* the kernel writes the time left back */
    case SYS_pselect6:
    case SYS_select:
    case SYS_read:
    case SYS_readv:
    case SYS_accept:
    case SYS_accept4:
    case SYS_wait4:
    case SYS_waitid:
    case SYS_pause:
    case SYS_rt_sigsuspend:
        return RANK_EXACT;
    case SYS_nanosleep:
    case SYS_clock_nanosleep:
    case SYS_recvfrom:
    case SYS_recvmsg:
        return RANK_TIMED;
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case SYS_rt_sigtimedwait:
    case SYS_io_uring_enter:
        return RANK_EINTR;
    default:
        return RANK_OTHER;
    }
}

/* Reads a file of a thread into `buf`; false when the thread is gone. */
static bool read_task_file(const struct target *t, pid_t tid, const char *file, char *buf,
                           size_t size)
{
    char path[64];
    snprintf(path, sizeof(path), "task/%d/%s", (int)tid, file);
    CLEANUP_FD int fd = openat(t->proc_fd, path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, buf, size - 1);
    if (n <= 0)
        return false;
    buf[n] = '\0';
    return true;
}

char tracee_state(const struct target *t, pid_t tid)
{
    char text[1024];
    if (!read_task_file(t, tid, "stat", text, sizeof(text)))
        return '\0';
    /* "TID (name) S ...": the name may hold anything, also a ')'. */
    const char *end = strrchr(text, ')');
    return end && end[1] == ' ' ? end[2] : '?';
}

/* In a page fault that a userfaultfd holds: in the kernel on behalf of a system call, it does not
 * stop before that is resolved (and would spin when interrupted); in user code, no use to us. */
static bool is_held_by_userfaultfd(const struct target *t, pid_t tid)
{
    char text[64];
    return read_task_file(t, tid, "wchan", text, sizeof(text)) &&
           strcmp(text, "handle_userfault") == 0;
}

static enum rank rank_thread(const struct target *t, pid_t tid)
{
    char text[1024];
    /* strchr() also finds the '\0' of one that is gone. */
    if (strchr("DZX", tracee_state(t, tid)) || is_held_by_userfaultfd(t, tid))
        return RANK_NEVER;
    long nr;
    uint64_t a[6];
    if (!read_task_file(t, tid, "syscall", text, sizeof(text)) ||
        sscanf(text, "%ld %" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx64,
               &nr, &a[0], &a[1], &a[2], &a[3], &a[4], &a[5]) != 7)
        return RANK_OTHER;
    return rank_call(nr, a);
}

static int compare(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->rank != y->rank)
        return x->rank < y->rank ? -1 : 1;
    return x->tid < y->tid ? -1 : x->tid > y->tid;
}

static int list_threads(const struct target *t, struct candidate **out, size_t *count)
{
    int fd = openat(t->proc_fd, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    if (!dir) {
        if (fd >= 0)
            close(fd);
        return -ESRCH;
    }
    size_t n = 0, capacity = 0;
    struct candidate *list = NULL;
    for (struct dirent *d; (d = readdir(dir));) {
        if (!isdigit((unsigned char)d->d_name[0]))
            continue;
        if (n == capacity) {
            capacity = capacity ? capacity * 2 : 16;
            struct candidate *bigger = reallocarray(list, capacity, sizeof(*list));
            if (!bigger) {
                free(list);
                closedir(dir);
                return -ENOMEM;
            }
            list = bigger;
        }
        list[n++] = (struct candidate){.tid = atoi(d->d_name)};
    }
    closedir(dir);
    *out = list;
    *count = n;
    return n > 0 ? 0 : -ESRCH;
}

int tracer_candidates(const struct target *t, pid_t **tids, size_t *count)
{
    CLEANUP_FREE struct candidate *list = NULL;
    size_t n = 0;
    int r = list_threads(t, &list, &n);
    if (r)
        return r;
    for (size_t i = 0; i < n; i++)
        list[i].rank = rank_thread(t, list[i].tid);
    qsort(list, n, sizeof(*list), compare);
    pid_t *out = calloc(n, sizeof(*out));
    if (!out)
        return -ENOMEM;
    size_t kept = 0;
    while (kept < n && list[kept].rank != RANK_NEVER) {
        out[kept] = list[kept].tid;
        kept++;
    }
    *tids = out;
    *count = kept;
    return 0;
}
