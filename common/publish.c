/*
 * publish.c - O_TMPFILE and linkat(2) where the file system has them; a hidden temporary name and
 * renameat2(2) where not. With `overwrite` the unnamed file first gets the hidden name and is then
 * renamed over the old one, since linkat(2) never replaces.
 */
#include "common/publish.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/testhook.h"

#define FILE_MODE 0600

enum vmsnap_exit publish_exit_code(int err)
{
    return err == ENOSPC || err == EDQUOT ? VMSNAP_EXIT_NO_SPACE : VMSNAP_EXIT_FAILED;
}

void publish_hint(struct error *e)
{
    switch (e ? e->err : 0) {
    case ENOSPC:
    case EDQUOT:
        error_hint(e, "make room there, or name a file on another file system");
        break;
    case EACCES:
    case EPERM:
    case EROFS:
    case ENOENT:
    case ENOTDIR:
    case ELOOP:
        error_hint(e, "name a file in a directory that is there and that you may write to");
        break;
    case EISDIR:
    case ENAMETOOLONG:
        error_hint(e, "name a file, by a shorter path if need be");
        break;
    case EFBIG:
        error_hint(e,
                   "raise the limit of a file's size ('ulimit -f'), or name a file on another file "
                   "system");
        break;
    case EIO:
        error_hint(e, "look for the storage's errors in the kernel's log (dmesg), or name a file "
                      "on another file system");
        break;
    default:
        break;
    }
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* What went wrong with a file that is being made, as -err. */
static int failed(struct error *e, int err, const char *what, const char *path)
{
    error_set(e, publish_exit_code(err), err, "%s%s", what, path);
    publish_hint(e);
    return -err;
}

static int refuse_existing(const char *path, struct error *e)
{
    error_set(e, VMSNAP_EXIT_FAILED, 0, "%s exists", path);
    error_hint(e, "choose another name, or replace it with --overwrite");
    if (e)
        e->err = EEXIST;
    return -EEXIST;
}

/* Settles the final path: refuses what must not be replaced and follows a symbolic link. */
static int settle_path(struct publish *p, const char *path, struct error *e)
{
    struct stat st;
    int n = snprintf(p->path, sizeof(p->path), "%s", path);
    const char *name = base_name(path);
    if (n < 0 || (size_t)n >= sizeof(p->path) - 48)
        return failed(e, ENAMETOOLONG, "", path);
    if (*name == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return failed(e, EISDIR, "no name for a file: ", path);
    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : failed(e, errno, "", path);
    if (!p->overwrite && !S_ISDIR(st.st_mode))
        return refuse_existing(path, e);
    if (!realpath(path, p->path) || stat(p->path, &st) < 0)
        return failed(e, errno, "", path);
    if (!S_ISREG(st.st_mode)) {
        error_set(e, VMSNAP_EXIT_FAILED, 0, "%s is not a regular file", path);
        error_hint(e, "only a regular file is replaced; to write to a pipe use -");
        return -EINVAL;
    }
    return 0;
}

/* The hidden name stands in the same directory, so that it can be renamed. Process ids come round
 * and are not unique over containers and hosts: random bits make it nobody else's. */
static void name_temporary(struct publish *p, size_t dir_bytes)
{
    uint32_t random = 0;
    if (getrandom(&random, sizeof(random), GRND_NONBLOCK) < 0)
        random = (uint32_t)clock_realtime_ns();
    memcpy(p->temporary, p->path, dir_bytes);
    snprintf(p->temporary + dir_bytes, sizeof(p->temporary) - dir_bytes, ".%.200s.vmsnap-%d-%08x",
             base_name(p->path), (int)getpid(), random);
}

static int open_directory(struct publish *p, struct error *e)
{
    char dir[PATH_MAX];
    size_t dir_bytes = (size_t)(base_name(p->path) - p->path);
    snprintf(dir, sizeof(dir), "%.*s", (int)dir_bytes, p->path);
    p->dir_fd = open(dir_bytes ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (p->dir_fd < 0)
        return failed(e, errno, "opening directory ", dir_bytes ? dir : ".");
    name_temporary(p, dir_bytes);
    return 0;
}

/* How kernels and file systems say that they have no O_TMPFILE (open(2), "BUGS" included). */
static bool lacks_tmpfile(int err)
{
    return err == EOPNOTSUPP || err == EISDIR || err == EINVAL || err == ENOENT;
}

static int open_file(struct publish *p, struct error *e)
{
    errno = EOPNOTSUPP;
    if (!TESTHOOK_MASKED("file.tmpfile"))
        p->fd = openat(p->dir_fd, ".", O_RDWR | O_TMPFILE | O_CLOEXEC, FILE_MODE);
    p->unnamed = p->fd >= 0;
    if (p->fd < 0 && lacks_tmpfile(errno)) {
        p->fd = openat(p->dir_fd, base_name(p->temporary), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC,
                       FILE_MODE);
        p->linked = p->fd >= 0;
    }
    return p->fd < 0 ? failed(e, errno, "creating a file for ", p->path) : 0;
}

int publish_open(struct publish *p, const char *path, bool overwrite, struct error *e)
{
    *p = (struct publish){.fd = -1, .dir_fd = -1, .overwrite = overwrite};
    int r = settle_path(p, path, e);
    if (r == 0)
        r = open_directory(p, e);
    if (r == 0)
        r = open_file(p, e);
    if (r < 0)
        publish_close(p);
    return r;
}

/* linkat(2) of an fd: by AT_EMPTY_PATH (needs CAP_DAC_READ_SEARCH before Linux 6.10), else through
 * /proc. */
static int link_fd(const struct publish *p, const char *name)
{
    char proc[32];
    if (linkat(p->fd, "", p->dir_fd, name, AT_EMPTY_PATH) == 0)
        return 0;
    if (errno == EEXIST)
        return -EEXIST;
    snprintf(proc, sizeof(proc), "/proc/self/fd/%d", p->fd);
    return linkat(AT_FDCWD, proc, p->dir_fd, name, AT_SYMLINK_FOLLOW) == 0 ? 0 : -errno;
}

/* From the hidden name to the final one, which must not exist. File systems without
 * RENAME_NOREPLACE (NFS) have hard links. */
static int rename_to_free_name(struct publish *p)
{
    const char *from = base_name(p->temporary), *to = base_name(p->path);
    if (renameat2(p->dir_fd, from, p->dir_fd, to, RENAME_NOREPLACE) == 0) {
        p->linked = false;
        return 0;
    }
    if (errno != EINVAL && errno != ENOSYS)
        return -errno;
    return linkat(p->dir_fd, from, p->dir_fd, to, 0) == 0 ? 0 : -errno;
}

static int rename_over(struct publish *p)
{
    const char *hidden = base_name(p->temporary);
    if (!p->linked) {
        int r = link_fd(p, hidden);
        if (r < 0)
            return r;
        p->linked = true;
    }
    TESTHOOK_POINT("sink-before-rename");
    if (renameat(p->dir_fd, hidden, p->dir_fd, base_name(p->path)) < 0)
        return -errno;
    p->linked = false;
    return 0;
}

static int sync_directory(const struct publish *p, struct error *e)
{
    if (fsync(p->dir_fd) == 0 || errno == EINVAL || errno == ENOTSUP)
        return 0; /* some file systems have no fsync for directories */
    int err = errno;
    if (!p->overwrite)
        unlinkat(p->dir_fd, base_name(p->path), 0);
    return failed(e, err, "flushing the directory of ", p->path);
}

int publish_link(struct publish *p, struct error *e)
{
    int r;
    TESTHOOK_POINT("sink-before-link");
    if (p->overwrite)
        r = rename_over(p);
    else if (p->unnamed)
        r = link_fd(p, base_name(p->path));
    else
        r = rename_to_free_name(p);
    if (r == -EEXIST)
        return refuse_existing(p->path, e);
    if (r < 0)
        return failed(e, -r, "giving the finished file its name ", p->path);
    TESTHOOK_POINT("sink-after-link");
    return sync_directory(p, e);
}

int publish_commit(struct publish *p, struct error *e)
{
    if (fsync(p->fd) < 0)
        return failed(e, errno, "flushing ", p->path);
    return publish_link(p, e);
}

void publish_close(struct publish *p)
{
    if (p->linked)
        unlinkat(p->dir_fd, base_name(p->temporary), 0);
    if (p->fd >= 0)
        close(p->fd);
    if (p->dir_fd >= 0)
        close(p->dir_fd);
    p->linked = false;
    p->fd = p->dir_fd = -1;
}
