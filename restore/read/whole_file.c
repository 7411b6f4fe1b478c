#include "restore/read/whole_file.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/child.h"
#include "common/testhook.h"

struct whole_file_shared {
    /* For the process. */
    int fd;
    const char *suffix;
    uint64_t max_bytes;
    /* From it. */
    bool is_over;
    int err;
    size_t bytes;
    char path[PATH_MAX];
    unsigned char content[];
};

int whole_file_beside(int fd, const char *suffix, char path[PATH_MAX])
{
    char link[64];
    struct stat here, there;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    if (n < 0)
        return -errno;
    path[n] = '\0';
    /* Of a file without a name the kernel says "NAME (deleted)", which may be another file. */
    if (fstat(fd, &here) || stat(path, &there) || here.st_ino != there.st_ino ||
        here.st_dev != there.st_dev)
        return -ENOENT;
    if ((size_t)n + strlen(suffix) >= PATH_MAX)
        return -ENAMETOOLONG;
    memcpy(path + n, suffix, strlen(suffix) + 1);
    return 0;
}

/* ---- the process ---- */

static int read_all(struct whole_file_shared *s)
{
    struct stat st;
    int rc = whole_file_beside(s->fd, s->suffix, s->path);
    if (rc)
        return rc;
    /* O_NONBLOCK: a FIFO is no reason to wait. */
    int fd = open(s->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 || fstat(fd, &st))
        return -errno;
    while (S_ISREG(st.st_mode) && s->bytes < s->max_bytes) {
        ssize_t n = read(fd, s->content + s->bytes, s->max_bytes - s->bytes);
        if (n == 0)
            break;
        if (n < 0 && errno != EINTR)
            return -errno;
        s->bytes += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

static void run_child(void *opaque)
{
    struct whole_file_shared *s = opaque;
    prctl(PR_SET_NAME, "vmsnap-reader");
    TESTHOOK_POINT("workset-reading");
    s->err = -read_all(s);
    s->is_over = true;
    _exit(0);
}

/* ---- the parent ---- */

int whole_file_begin(struct whole_file *f, int fd, const char *suffix, uint64_t max_bytes)
{
    *f = (struct whole_file){.pidfd = -1, .map_bytes = sizeof(*f->shared) + max_bytes};
    void *map = mmap(NULL, f->map_bytes, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return -ENOMEM;
    f->shared = map;
    f->shared->fd = fd;
    f->shared->suffix = suffix;
    f->shared->max_bytes = max_bytes;
    f->pidfd = child_fork(&fd, 1, run_child, f->shared);
    if (f->pidfd >= 0)
        return 0;
    int rc = f->pidfd;
    whole_file_end(f);
    return rc;
}

int whole_file_wait(struct whole_file *f, int timeout_ms)
{
    struct pollfd ended = {.fd = f->pidfd, .events = POLLIN};
    if (poll(&ended, 1, timeout_ms) <= 0)
        return -EINPROGRESS;
    return f->shared->is_over ? -f->shared->err : -EOWNERDEAD;
}

const void *whole_file_content(const struct whole_file *f, size_t *bytes)
{
    *bytes = f->shared->bytes;
    return f->shared->content;
}

const char *whole_file_path(const struct whole_file *f)
{
    return f->shared->path;
}

void whole_file_end(struct whole_file *f)
{
    if (!f->shared)
        return;
    if (f->pidfd >= 0)
        child_end(f->pidfd, 0);
    munmap(f->shared, f->map_bytes);
    *f = (struct whole_file){.pidfd = -1};
}
