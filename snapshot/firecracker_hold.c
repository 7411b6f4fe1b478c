#include "snapshot/firecracker_hold.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/crc64.h"
#include "common/log.h"
#include "common/vmm/firecracker.h"

#define STATE "state"
#define MEMORY "memory"
#define LEFT_OVER_S 10
#define LET_GO_US 20000u /* for a thread that is about to open the FIFO */

void firecracker_hold_init(struct firecracker_hold *h)
{
    unsigned long long number = 0;
    if (getrandom(&number, sizeof(number), 0) != (ssize_t)sizeof(number))
        number = (unsigned long long)getpid();
    *h =
        (struct firecracker_hold){.parent_fd = -1, .dir_fd = -1, .inotify_fd = -1, .reader_fd = -1};
    snprintf(h->name, sizeof(h->name), ".vmsnap-%d-%016llx", (int)getpid(), number);
}

/* ---- the place ---- */

/* A directory as the VMM sees it: its links never lead out of its root. -errno. */
static int open_in_root(int root_fd, const char *path)
{
    struct open_how how = {.flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC,
                           .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
    long fd = syscall(SYS_openat2, root_fd, path, &how, sizeof(how));
    return fd >= 0 ? (int)fd : -errno;
}

static bool is_tmpfs(int fd)
{
    struct statfs fs;
    return fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC;
}

/* True: something can be made there. It is left as it was. */
static bool is_writable(int fd, const char *name)
{
    return mkdirat(fd, name, 0700) == 0 && unlinkat(fd, name, AT_REMOVEDIR) == 0;
}

int firecracker_hold_find_place(struct firecracker_hold *h, const struct target *t, struct error *e)
{
    static const char *const places[] = {"/dev/shm", "/run", "/tmp", "/"};
    enum { N = sizeof(places) / sizeof(*places) };
    CLEANUP_FD int root_fd = openat(t->proc_fd, "root", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root_fd < 0)
        return error_set(e, VMSNAP_EXIT_TARGET, errno, "can't look into the root of process %d",
                         (int)t->pid);
    for (unsigned i = 0; i < 2u * N; i++) { /* first those in memory */
        const char *place = places[i % N];
        CLEANUP_FD int fd = open_in_root(root_fd, place);
        if (fd < 0 || is_tmpfs(fd) != (i < N) || !is_writable(fd, h->name))
            continue;
        snprintf(h->path, sizeof(h->path), "%s/%s", i % N == N - 1 ? "" : place, h->name);
        h->parent_fd = take_fd(&fd);
        return 0;
    }
    error_set(e, VMSNAP_EXIT_TARGET, EROFS,
              "no place for the VMM's state file: in the root of process %d nothing can be made in "
              "/dev/shm, /run, /tmp or /",
              (int)t->pid);
    return -EROFS;
}

/* True for a directory that a vmsnap which is dead has left: it holds its VMM for good. One that is
 * young may be of another pid namespace. */
static bool is_left_over(int parent_fd, const char *name)
{
    int pid;
    struct stat st;
    return sscanf(name, ".vmsnap-%d-%*16[0-9a-f]", &pid) == 1 && pid > 0 && kill(pid, 0) < 0 &&
           errno == ESRCH && fstatat(parent_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
           S_ISDIR(st.st_mode) && time(NULL) - st.st_mtime > LEFT_OVER_S;
}

void firecracker_hold_clear_up(const struct firecracker_hold *h)
{
    int copy = fcntl(h->parent_fd, F_DUPFD_CLOEXEC, 0);
    DIR *d = copy >= 0 ? fdopendir(copy) : NULL;
    if (!d && copy >= 0)
        close(copy);
    for (const struct dirent *entry; d && (entry = readdir(d));) {
        struct firecracker_hold left;
        if (!is_left_over(h->parent_fd, entry->d_name))
            continue;
        firecracker_hold_init(&left);
        snprintf(left.name, sizeof(left.name), "%s", entry->d_name);
        left.parent_fd = fcntl(h->parent_fd, F_DUPFD_CLOEXEC, 0);
        log_info("%s was left by a vmsnap that was killed: its VMM is let go", entry->d_name);
        firecracker_hold_release(&left);
        usleep(LET_GO_US);
        firecracker_hold_close(&left);
    }
    if (d)
        closedir(d);
}

/* The ids with which the VMM opens files. */
static int find_owner(const struct target *t, uid_t *uid, gid_t *gid)
{
    CLEANUP_FD int fd = openat(t->proc_fd, "status", O_RDONLY | O_CLOEXEC);
    FILE *f = fd >= 0 ? fdopen(fd, "re") : NULL;
    char line[256];
    unsigned found = 0, fs_uid = 0, fs_gid = 0;
    if (!f)
        return -errno;
    take_fd(&fd);
    while (fgets(line, sizeof(line), f)) {
        found += sscanf(line, "Uid: %*u %*u %*u %u", &fs_uid) == 1;
        found += sscanf(line, "Gid: %*u %*u %*u %u", &fs_gid) == 1;
    }
    fclose(f);
    *uid = fs_uid;
    *gid = fs_gid;
    return found == 2 ? 0 : -ESRCH;
}

static int make_all(struct firecracker_hold *h, const struct target *t)
{
    uid_t uid = 0;
    gid_t gid = 0;
    char name[32];
    int ret = find_owner(t, &uid, &gid);
    if (ret)
        return ret;
    if (mkdirat(h->parent_fd, h->name, 0700))
        return -errno;
    h->dir_fd = openat(h->parent_fd, h->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    h->inotify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (h->dir_fd < 0 || h->inotify_fd < 0)
        return -errno;
    snprintf(name, sizeof(name), "/proc/self/fd/%d", h->dir_fd);
    if (mkfifoat(h->dir_fd, MEMORY, 0600) || fchownat(h->dir_fd, MEMORY, uid, gid, 0) ||
        inotify_add_watch(h->inotify_fd, name, IN_CLOSE_WRITE) < 0 || fchown(h->dir_fd, uid, gid))
        return -errno;
    return 0;
}

int firecracker_hold_make(struct firecracker_hold *h, const struct target *t, struct error *e)
{
    int ret = make_all(h, t);
    if (ret)
        return error_set(e, VMSNAP_EXIT_TARGET, -ret,
                         "cannot make a place for the VMM's state file "
                         "in %s of its root",
                         h->path);
    return 0;
}

/* ---- around the instant ---- */

char *firecracker_hold_request(const struct firecracker_hold *h)
{
    char state[PATH_MAX + 16], memory[PATH_MAX + 16];
    snprintf(state, sizeof(state), "%s/" STATE, h->path);
    snprintf(memory, sizeof(memory), "%s/" MEMORY, h->path);
    json_t *o = json_pack("{s:s, s:s, s:s}", "snapshot_type", "Full", "snapshot_path", state,
                          "mem_file_path", memory);
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    return text;
}

bool firecracker_hold_is_held(struct firecracker_hold *h)
{
    union {
        struct inotify_event event;
        char bytes[sizeof(struct inotify_event) + NAME_MAX + 1];
    } u;
    while (read(h->inotify_fd, &u, sizeof(u)) > 0)
        if (u.event.len && strcmp(u.event.name, STATE) == 0)
            return true;
    return false;
}

static int bad_state(struct error *e, const char *what)
{
    error_set(e, VMSNAP_EXIT_VMM, EPROTO, "the state file that the VMM wrote is %s", what);
    return -EPROTO;
}

int firecracker_hold_read_state(const struct firecracker_hold *h, void **buf, size_t *len,
                                struct error *e)
{
    struct stat st;
    CLEANUP_FD int fd = openat(h->dir_fd, STATE, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st))
        return error_set(e, VMSNAP_EXIT_VMM, errno, "can't open the state file that the VMM wrote");
    if (!S_ISREG(st.st_mode) || st.st_size <= 0 || st.st_size > FIRECRACKER_MAX_STATE_BYTES)
        return bad_state(e, "no file, empty, or too long");
    CLEANUP_FREE unsigned char *bytes = malloc((size_t)st.st_size);
    if (!bytes)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot keep the VMM's state");
    for (off_t at = 0; at < st.st_size;) {
        ssize_t n = pread(fd, bytes + at, (size_t)(st.st_size - at), at);
        if (n <= 0)
            return bad_state(e, "cut short while it was read");
        at += n;
    }
    if (crc64(0, bytes, (size_t)st.st_size) != 0)
        return bad_state(e, "not complete: it does not end with its own check sum");
    *len = (size_t)st.st_size;
    *buf = take_ptr(&bytes);
    return 0;
}

/* ---- afterwards ---- */

/* Another process may have made it. */
static void open_made(struct firecracker_hold *h)
{
    if (h->dir_fd < 0 && h->parent_fd >= 0)
        h->dir_fd = openat(h->parent_fd, h->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* The reader comes first: who has found the FIFO already is let go, who looks for it finds none. */
void firecracker_hold_release(struct firecracker_hold *h)
{
    open_made(h);
    if (h->dir_fd < 0)
        return;
    if (h->reader_fd < 0)
        h->reader_fd = openat(h->dir_fd, MEMORY, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    unlinkat(h->dir_fd, MEMORY, 0);
    unlinkat(h->dir_fd, STATE, 0);
    unlinkat(h->parent_fd, h->name, AT_REMOVEDIR);
}

void firecracker_hold_close(struct firecracker_hold *h)
{
    int *fds[] = {&h->reader_fd, &h->inotify_fd, &h->dir_fd, &h->parent_fd};
    firecracker_hold_release(h);
    for (size_t i = 0; i < sizeof(fds) / sizeof(*fds); i++) {
        if (*fds[i] >= 0)
            close(*fds[i]);
        *fds[i] = -1;
    }
}
