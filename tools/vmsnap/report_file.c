#include "tools/vmsnap/report_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/publish.h"
#include "tools/vmsnap/report.h"

#define BUFFER_BYTES 65536 /* a line is one write: several processes have the file */
#define ROOM_BYTES 16384   /* for what tells how it went */

static struct {
    FILE *stream;
    const char *path;
    bool made, regular;
} file;

/* A device tells by a write of nothing, a file system by setting blocks aside; what can't tell is
 * taken at its word. */
static int check_room(int fd)
{
    int rc =
        file.regular ? fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, ROOM_BYTES) : (int)write(fd, "", 0);
    return rc < 0 && (errno == ENOSPC || errno == EDQUOT) ? -errno : 0;
}

/* Whether the name still leads to it. */
static bool has_name(int fd)
{
    struct stat ours, there;
    return fstat(fd, &ours) == 0 && stat(file.path, &there) == 0 && ours.st_dev == there.st_dev &&
           ours.st_ino == there.st_ino;
}

/* With the lock held: what we made goes again, unless something is in it. */
static void remove_made(int fd)
{
    struct stat st;
    if (file.made && fstat(fd, &st) == 0 && st.st_size == 0 && has_name(fd))
        unlink(file.path);
}

/* Another may have opened what we made before we had the lock, or we what it removes. */
static int prepare(int fd, struct error *e)
{
    struct stat st;
    file.regular = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    bool busy = file.regular && flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK;
    if (busy || (file.regular && !has_name(fd))) {
        error_set(e, VMSNAP_EXIT_BUSY, 0, "--report: another vmsnap writes to %s", file.path);
        error_hint(e, "name another file");
        return -EBUSY;
    }
    int rc = check_room(fd);
    if (rc) {
        error_set(e, VMSNAP_EXIT_NO_SPACE, -rc, "can't write %s", file.path);
        error_hint(e, "make room there, or name a file elsewhere");
        return rc;
    }
    file.stream = fdopen(fd, "a");
    if (!file.stream)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't write %s", file.path);
    setvbuf(file.stream, NULL, _IOFBF, BUFFER_BYTES);
    return 0;
}

int report_file_open(const char *path, struct error *e)
{
    int flags = O_WRONLY | O_APPEND | O_CLOEXEC | O_NOCTTY;
    file.path = path;
    int fd = open(path, flags | O_CREAT | O_EXCL, 0644);
    file.made = fd >= 0;
    if (fd < 0 && errno == EEXIST)
        fd = open(path, flags | O_CREAT, 0644);
    if (fd < 0) {
        int failed =
            error_set(e, publish_exit_code(errno), errno, "--report: can't write %s", path);
        publish_hint(e);
        return failed;
    }
    int rc = prepare(fd, e);
    if (rc == 0)
        return 0;
    if (rc != -EBUSY)
        remove_made(fd);
    close(fd);
    return rc;
}

FILE *report_file(void)
{
    return file.stream;
}

/* A lock belongs to an opening, which forks share: this is one of its own. */
void report_file_unlock_here(void)
{
    char name[32];
    int fd = file.stream ? fileno(file.stream) : -1;
    if (fd < 0 || !file.regular)
        return;
    snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
    int own = open(name, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (own < 0)
        return;
    lseek(own, 0, SEEK_END); /* it is begun */
    dup3(own, fd, O_CLOEXEC);
    close(own);
}

void report_file_begin(void)
{
    struct stat st;
    int fd = file.stream ? fileno(file.stream) : -1;
    if (fd >= 0 && file.regular && lseek(fd, 0, SEEK_CUR) == 0 && fstat(fd, &st) == 0 &&
        st.st_size > 0 && ftruncate(fd, 0))
        file.regular = false; /* append-only: then the lines follow those of before */
}

static int set_room_aside(int fd)
{
    struct stat st;
    if (fstat(fd, &st) || fallocate(fd, FALLOC_FL_KEEP_SIZE, st.st_size, ROOM_BYTES))
        return -errno;
    return 0;
}

void report_file_look_ahead(void)
{
    static bool told;
    int fd = file.stream && file.regular ? fileno(file.stream) : -1;
    int rc = fd < 0 ? 0 : set_room_aside(fd);
    bool full = rc == -ENOSPC || rc == -EDQUOT;
    if (full && !told) {
        struct error e = {.guest = GUEST_UNKNOWN};
        error_set(&e, VMSNAP_EXIT_NO_SPACE, -rc, "--report: hardly anything more can be told in %s",
                  file.path);
        error_hint(&e, "make room there: nothing else is amiss, but what happens next may be lost "
                       "to this file");
        report_object("error", report_describe_error(&e));
    }
    told = full;
}

void report_file_abandon(void)
{
    if (file.stream)
        remove_made(fileno(file.stream));
}
