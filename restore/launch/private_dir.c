#include "restore/launch/private_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "restore/launch/relaunch.h"

/* One that is younger may be just about to be locked. */
#define STALE_SECONDS 60
#define RANDOM_LETTERS 6

static const char *const places[] = {"/run", "/tmp"};

/* ---- what others have left behind ---- */

static bool is_named_as_ours(const char *name)
{
    static const char prefix[] = RELAUNCH_PRIVATE_PREFIX;
    return strncmp(name, prefix, sizeof(prefix) - 1) == 0 &&
           strlen(name) == sizeof(prefix) - 1 + RANDOM_LETTERS;
}

/* Made by our user, old, and written by nobody else. */
static bool looks_stale(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISDIR(st.st_mode) && st.st_uid == geteuid() &&
           !(st.st_mode & (S_IWGRP | S_IWOTH)) && time(NULL) - st.st_mtime >= STALE_SECONDS;
}

/* Removes it if nobody has it locked. Holding the lock meanwhile keeps a fellow remover away; its
 * owner never asks for it twice. Nothing but the socket is removed from it: rmdir() fails then. */
static void remove_if_stale(int place, const char *name)
{
    CLEANUP_FD int fd = openat(place, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || !looks_stale(fd) || flock(fd, LOCK_EX | LOCK_NB))
        return;
    if (fstatat(fd, RELAUNCH_PRIVATE_SOCKET, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISSOCK(st.st_mode))
        unlinkat(fd, RELAUNCH_PRIVATE_SOCKET, 0);
    if (unlinkat(place, name, AT_REMOVEDIR) == 0)
        log_info("removed %s, which a restore that was killed had left behind", name);
}

static void remove_stale(const char *where)
{
    DIR *place = opendir(where);
    if (!place)
        return;
    for (const struct dirent *entry; (entry = readdir(place));)
        if (is_named_as_ours(entry->d_name))
            remove_if_stale(dirfd(place), entry->d_name);
    closedir(place);
}

/* ---- our own ---- */

static int make_in(struct private_dir *d, const char *where)
{
    snprintf(d->path, sizeof(d->path), "%s/" RELAUNCH_PRIVATE_PREFIX "XXXXXX", where);
    if (!mkdtemp(d->path)) {
        int err = errno;
        d->path[0] = '\0';
        return -err;
    }
    d->lock_fd = open(d->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (d->lock_fd >= 0 && flock(d->lock_fd, LOCK_EX | LOCK_NB) == 0 && chmod(d->path, 0711) == 0)
        return 0;
    int err = errno;
    private_dir_remove(d);
    return -err;
}

int private_dir_make(struct private_dir *d)
{
    int rc = -ENOENT;
    *d = (struct private_dir){.lock_fd = -1};
    for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++)
        remove_stale(places[i]);
    for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++) {
        rc = make_in(d, places[i]);
        if (rc == 0)
            break;
    }
    if (rc == 0)
        snprintf(d->socket_path, sizeof(d->socket_path), "%s/" RELAUNCH_PRIVATE_SOCKET, d->path);
    return rc;
}

void private_dir_remove(struct private_dir *d)
{
    if (!d->path[0])
        return;
    unlink(d->socket_path);
    rmdir(d->path);
    if (d->lock_fd >= 0)
        close(d->lock_fd);
    *d = (struct private_dir){.lock_fd = -1};
}
