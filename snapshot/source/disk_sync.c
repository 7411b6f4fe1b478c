#include "snapshot/source/disk_sync.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/child.h"
#include "common/clock.h"
#include "common/log.h"

#define MAX_FILES (CHILD_MAX_KEEP - 1)
#define MAX_ROUNDS 3
#define SHORT_ROUND_NS 20000000u
#define TICK_MS 50
/* For the process to end: one that sleeps in a file system is hardly waited for. */
#define END_GRACE_MS 1000
#define END_GRACE_UNANSWERED_MS 100

/* ---- the process ---- */

static int sync_all(const int *files, unsigned n)
{
    int first_error = 0;
    for (unsigned i = 0; i < n; i++)
        if (fdatasync(files[i]) < 0 && !first_error)
            first_error = -errno;
    return first_error;
}

struct child {
    int socket;
    const int *files;
    unsigned n;
};

static void run_child(void *opaque)
{
    const struct child *c = opaque;
    char asked;
    prctl(PR_SET_NAME, "vmsnap-sync");
    while (read(c->socket, &asked, 1) == 1) {
        int result = sync_all(c->files, c->n);
        if (write(c->socket, &result, sizeof(result)) != (ssize_t)sizeof(result))
            break;
    }
    _exit(0);
}

/* ---- finding the files ---- */

static bool is_disk_file(int fd)
{
    struct stat st;
    struct statfs fs;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY || (flags & O_PATH) || fstat(fd, &st) < 0)
        return false;
    if (S_ISBLK(st.st_mode))
        return true;
    return S_ISREG(st.st_mode) && fstatfs(fd, &fs) == 0 && fs.f_type != TMPFS_MAGIC &&
           fs.f_type != HUGETLBFS_MAGIC;
}

/* Takes copies of them. Descriptors that come or go meanwhile are skipped. */
static int find_files(const struct target *t, int *files, unsigned *n)
{
    int fd = openat(t->proc_fd, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        int err = errno;
        if (fd >= 0)
            close(fd);
        return -err;
    }
    const struct dirent *entry;
    while (*n < MAX_FILES && (entry = readdir(dir))) {
        char *end;
        long number = strtol(entry->d_name, &end, 10);
        int copy = *end ? -1 : target_get_fd(t, (int)number);
        if (copy >= 0 && is_disk_file(copy))
            files[(*n)++] = copy;
        else if (copy >= 0)
            close(copy);
    }
    closedir(dir);
    return 0;
}

/* ---- the parent ---- */

static int start_process(struct disk_sync *d, const int *files)
{
    int sockets[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) < 0)
        return -errno;
    int keep[MAX_FILES + 1];
    memcpy(keep, files, d->n_files * sizeof(*files));
    keep[d->n_files] = sockets[1];
    struct child c = {.socket = sockets[1], .files = files, .n = d->n_files};
    int pidfd = child_fork(keep, d->n_files + 1, run_child, &c);
    close(sockets[1]);
    if (pidfd < 0) {
        close(sockets[0]);
        return pidfd;
    }
    d->pidfd = pidfd;
    d->socket = sockets[0];
    return 0;
}

int disk_sync_start(struct disk_sync *d, const struct target *t, struct error *e)
{
    int files[MAX_FILES] = {0};
    *d = (struct disk_sync){.socket = -1};
    int r = find_files(t, files, &d->n_files);
    if (r == 0 && d->n_files > 0)
        r = start_process(d, files);
    for (unsigned i = 0; i < d->n_files; i++)
        close(files[i]);
    if (r < 0)
        error_set(e, VMSNAP_EXIT_FAILED, -r, "cannot sync the VM's disk files");
    return r;
}

/* Waits for the answer. -ETIMEDOUT; or what tick() returned, *ticked then says so. */
static int wait_for_answer(struct disk_sync *d, int timeout_ms, int (*tick)(void *opaque),
                           void *opaque, bool *ticked)
{
    struct pollfd p = {.fd = d->socket, .events = POLLIN};
    uint64_t deadline = clock_monotonic_ns() + (uint64_t)timeout_ms * 1000000u;
    for (;;) {
        int left_ms = clock_ms_until(deadline);
        if (poll(&p, 1, left_ms < TICK_MS ? left_ms : TICK_MS) > 0)
            return 0;
        int r = tick(opaque);
        *ticked = r != 0;
        if (r)
            return r;
        if (clock_monotonic_ns() >= deadline)
            return -ETIMEDOUT;
    }
}

static int run_round(struct disk_sync *d, int timeout_ms, int (*tick)(void *opaque), void *opaque,
                     bool *ticked)
{
    int result;
    if (send(d->socket, "s", 1, MSG_NOSIGNAL) != 1)
        return -EPIPE;
    d->unanswered = true;
    int r = wait_for_answer(d, timeout_ms, tick, opaque, ticked);
    if (r)
        return r;
    if (recv(d->socket, &result, sizeof(result), 0) != (ssize_t)sizeof(result))
        return -EPIPE;
    d->unanswered = false;
    if (result)
        log_warn("cannot sync a disk file of the VM: %s", strerror(-result));
    return 0;
}

int disk_sync_run(struct disk_sync *d, int timeout_ms, int (*tick)(void *opaque), void *opaque,
                  struct error *e)
{
    bool ticked = false;
    if (d->socket < 0)
        return 0;
    uint64_t took_ns = UINT64_MAX;
    for (int round = 0; round < MAX_ROUNDS && took_ns > SHORT_ROUND_NS; round++) {
        uint64_t from = clock_monotonic_ns();
        int r = run_round(d, timeout_ms, tick, opaque, &ticked);
        took_ns = clock_monotonic_ns() - from;
        if (ticked)
            return r;
        if (r == -ETIMEDOUT) {
            error_set(
                e, VMSNAP_EXIT_TIMEOUT, ETIMEDOUT,
                "the files that the VM has open for writing could not be synced, which stopping "
                "the VM would wait for");
            error_hint(e, "see whether the file system of its disks or logs hangs");
            return r;
        }
        if (r < 0)
            return error_set(e, VMSNAP_EXIT_FAILED, -r, "cannot sync the VM's disk files");
        log_info("synced %u file%s that the VM has open for writing (disks, logs) in %.1f ms",
                 d->n_files, d->n_files > 1 ? "s" : "", (double)took_ns / 1e6);
    }
    return 0;
}

void disk_sync_stop(struct disk_sync *d)
{
    if (d->socket < 0)
        return;
    close(d->socket);
    d->socket = -1;
    child_end(d->pidfd, d->unanswered ? END_GRACE_UNANSWERED_MS : END_GRACE_MS);
}
