#include "restore/launch/image_owner.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOVE "move the image to a directory that only you or root can write, or "

static int refuse(struct error *e, const char *path, const char *what, const char *hint)
{
    error_set(e, VMSNAP_EXIT_HAZARD, 0,
              "image-owner: %s %s: the command line recorded in the image is not run", path, what);
    error_hint(e, "if you trust it: %slook at the line with --print-command and give it after --",
               hint);
    return -EPERM;
}

static bool owner_trusted(const struct stat *st)
{
    return st->st_uid == 0 || st->st_uid == geteuid();
}

static int check_directory(const char *path, struct error *e)
{
    struct stat st;
    if (stat(path, &st))
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't look at the directory %s", path);
    if (!owner_trusted(&st))
        return refuse(e, path, "is a directory of another user", MOVE);
    if ((st.st_mode & (S_IWGRP | S_IWOTH)) && !(st.st_mode & S_ISVTX))
        return refuse(e, path, "is a directory that others can write", MOVE);
    return 0;
}

/* Every directory from the image's up to the root. */
static int check_directories(const char *image, struct error *e)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s", image);
    for (char *slash; (slash = strrchr(path, '/'));) {
        *slash = '\0';
        int rc = check_directory(path[0] ? path : "/", e);
        if (rc)
            return rc;
    }
    return 0;
}

int image_owner_check(int fd, const char *path, struct error *e)
{
    struct stat st;
    if (fstat(fd, &st))
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't look at %s", path);
    if (!owner_trusted(&st))
        return refuse(e, path, "belongs to another user", "make the image your own, or ");
    if (st.st_mode & (S_IWGRP | S_IWOTH))
        return refuse(e, path, "can be written by others", "take that right away, or ");
    char name[64], real[PATH_MAX];
    snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
    ssize_t len = readlink(name, real, sizeof(real) - 1);
    if (len < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't find where %s is", path);
    real[len] = '\0';
    return check_directories(real, e);
}
