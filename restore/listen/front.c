/*
 * front.c - see front.h.
 *
 * A socket file outlives the process that listened there, and bind() refuses a path that exists. So
 * it is removed first if nobody holds it: both steps under a lock of the directory, so that of two
 * vmsnaps that start at once neither takes the other's away.
 */
#include "restore/listen/front.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "restore/launch/probe.h"

#define BACKLOG 128
#define LOCK_WAIT_TRIES 100

/* Somebody's lock of the directory is not waited for without end: it need not be a vmsnap's. */
static int lock_directory(const char *path)
{
    CLEANUP_FREE char *copy = strdup(path);
    int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    for (int i = 0; fd >= 0 && i < LOCK_WAIT_TRIES && flock(fd, LOCK_EX | LOCK_NB); i++)
        usleep(10000);
    return fd;
}

static int refuse_held(const char *path, struct error *e)
{
    int rc = error_set(e, VMSNAP_EXIT_HAZARD, EADDRINUSE, "in-use: a process listens at %s", path);
    error_hint(e, "name another socket, or end who listens there");
    return rc;
}

/* What lies at the path: nothing, or nothing any more. */
static int make_way(const char *path, struct error *e)
{
    struct stat st;
    if (lstat(path, &st))
        return errno == ENOENT ? 0 : error_set(e, VMSNAP_EXIT_FAILED, errno, "%s", path);
    if (!S_ISSOCK(st.st_mode)) {
        error_set(e, VMSNAP_EXIT_FAILED, 0, "%s is there and is no socket", path);
        error_hint(e, "name a path for the socket where nothing lies");
        return -EEXIST;
    }
    int held = probe_unix_held(AT_FDCWD, path, false);
    if (held > 0)
        return refuse_held(path, e);
    if (held < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, -held, "can't see whether %s is in use", path);
    log_info("%s was left by a process that has ended: it is replaced", path);
    return unlink(path) && errno != ENOENT
               ? error_set(e, VMSNAP_EXIT_FAILED, errno, "can't remove %s", path)
               : 0;
}

static int bind_there(struct front *f, const struct sockaddr_un *address, struct error *e)
{
    mode_t mask = umask(0177);
    int rc = bind(f->fd, (const struct sockaddr *)address, sizeof(*address)) ? -errno : 0;
    umask(mask);
    if (rc == 0 && (listen(f->fd, BACKLOG) || lstat(f->path, &f->made)))
        rc = -errno;
    if (rc == -EADDRINUSE)
        return refuse_held(f->path, e);
    if (rc) {
        error_set(e, VMSNAP_EXIT_FAILED, -rc, "can't listen at %s", f->path);
        error_hint(e, "name a socket in a directory that is there and that you may write to");
    }
    return rc;
}

int front_open(struct front *f, const char *path, struct error *e)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    *f = (struct front){.fd = -1, .path = path};
    if (strlen(path) >= sizeof(address.sun_path))
        return error_set(e, VMSNAP_EXIT_USAGE, ENAMETOOLONG,
                         "a socket's path has at most %zu characters: %s",
                         sizeof(address.sun_path) - 1, path);
    strcpy(address.sun_path, path);
    f->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (f->fd < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't make a socket");
    CLEANUP_FD int lock = lock_directory(path);
    int rc = make_way(path, e);
    if (rc == 0)
        rc = bind_there(f, &address, e);
    if (rc)
        front_forget(f);
    return rc;
}

void front_forget(struct front *f)
{
    if (f->fd >= 0)
        close(f->fd);
    f->fd = -1;
}

void front_close(struct front *f)
{
    struct stat now;
    if (f->fd >= 0 && lstat(f->path, &now) == 0 && now.st_dev == f->made.st_dev &&
        now.st_ino == f->made.st_ino)
        unlink(f->path);
    front_forget(f);
}
