#include "snapshot/source/firecracker_hold.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
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
#include "common/clock.h"
#include "common/crc64.h"
#include "common/log.h"
#include "common/testhook.h"
#include "common/vmm/firecracker.h"

#define STATE "state"
#define MEMORY "memory"
#define GONE ".gone" /* the directory's name ends so once it is being removed */
#define NAME_ROOM 64
#define REMOVE_TRIES 5
#define LEFT_OVER_S 10
#define LET_GO_US 20000u /* for a thread that is about to open the FIFO */

/* A name that nobody can know before something of that name is there. */
static void choose_name(char *name, size_t size)
{
    unsigned long long number = 0;
    if (getrandom(&number, sizeof(number), 0) != (ssize_t)sizeof(number))
        number = (unsigned long long)clock_monotonic_ns();
    snprintf(name, size, ".vmsnap-%d-%016llx", (int)getpid(), number);
}

void firecracker_hold_init(struct firecracker_hold *h)
{
    *h =
        (struct firecracker_hold){.parent_fd = -1, .dir_fd = -1, .inotify_fd = -1, .reader_fd = -1};
    choose_name(h->name, sizeof(h->name));
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

/* True: something can be made there. It is left as it was. The name is not the one that is used
 * later: who owns that place is not to know it beforehand. */
static bool is_writable(int fd)
{
    char name[NAME_ROOM];
    choose_name(name, sizeof(name));
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
        if (fd < 0 || is_tmpfs(fd) != (i < N) || !is_writable(fd))
            continue;
        snprintf(h->path, sizeof(h->path), "%s/%s", i % N == N - 1 ? "" : place, h->name);
        h->parent_fd = take_fd(&fd);
        return 0;
    }
    error_set(e, VMSNAP_EXIT_TARGET, EROFS,
              "no place for the VMM's state file: in the root of process %d nothing can be made in "
              "/dev/shm, /run, /tmp or /",
              (int)t->pid);
    error_hint(e, "make one of them a directory that can be written; a tmpfs as /dev/shm keeps the "
                  "pause shortest");
    return -EROFS;
}

/* Whether `name` is exactly one of ours, of whatever process, and whether of one being removed. */
static bool parse_name(const char *name, int *pid, bool *gone)
{
    int at = 0;
    if (sscanf(name, ".vmsnap-%9d-%n", pid, &at) != 1 || at == 0 || *pid <= 0)
        return false;
    const char *end = name + at + strspn(name + at, "0123456789abcdef");
    *gone = strcmp(end, GONE) == 0;
    return end - (name + at) == 16 && (*gone || *end == '\0');
}

/* True for a directory that a vmsnap which is dead has left: it holds its VMM for good. One that is
 * young may be of another pid namespace. */
static bool is_left_over(int parent_fd, const char *name, bool *gone)
{
    int pid;
    struct stat st;
    return parse_name(name, &pid, gone) && kill(pid, 0) < 0 && errno == ESRCH &&
           fstatat(parent_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode) &&
           time(NULL) - st.st_mtime > LEFT_OVER_S;
}

static bool has_fifo(int dir_fd)
{
    struct stat st;
    return fstatat(dir_fd, MEMORY, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISFIFO(st.st_mode);
}

/* Without the FIFO, which is removed last, the directory is empty or none of ours. */
static bool let_go_left_over(const struct firecracker_hold *h, const char *name, bool gone)
{
    struct firecracker_hold left;
    firecracker_hold_init(&left);
    snprintf(left.name, sizeof(left.name), "%s", name);
    if (gone)
        left.name[strlen(name) - strlen(GONE)] = '\0';
    CLEANUP_FD int fd = openat(h->parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || !has_fifo(fd)) {
        unlinkat(h->parent_fd, name, AT_REMOVEDIR);
        return false;
    }
    left.parent_fd = fcntl(h->parent_fd, F_DUPFD_CLOEXEC, 0);
    left.dir_fd = take_fd(&fd);
    log_info("%s was left by a vmsnap that was killed: its VMM is let go", name);
    firecracker_hold_release(&left);
    usleep(LET_GO_US);
    firecracker_hold_close(&left);
    return true;
}

unsigned firecracker_hold_clear_up(const struct firecracker_hold *h)
{
    unsigned n = 0;
    int copy = fcntl(h->parent_fd, F_DUPFD_CLOEXEC, 0);
    DIR *d = copy >= 0 ? fdopendir(copy) : NULL;
    if (!d && copy >= 0)
        close(copy);
    for (const struct dirent *entry; d && (entry = readdir(d));) {
        bool gone;
        if (is_left_over(h->parent_fd, entry->d_name, &gone))
            n += let_go_left_over(h, entry->d_name, gone);
    }
    if (d)
        closedir(d);
    return n;
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

/* Whether it is the directory that was just made: who owns the place may have put another there. It
 * is given away only if nobody else can have put anything in. */
static bool is_fresh(int fd)
{
    struct stat st;
    unsigned n = 0;
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    DIR *d = copy >= 0 ? fdopendir(copy) : NULL;
    if (!d && copy >= 0)
        close(copy);
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n == 2 && fstat(fd, &st) == 0 && st.st_uid == geteuid() && (st.st_mode & 0777) == 0700;
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
    TESTHOOK_POINT("firecracker-place-made");
    h->dir_fd = openat(h->parent_fd, h->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    h->inotify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (h->dir_fd < 0 || h->inotify_fd < 0)
        return -errno;
    if (!is_fresh(h->dir_fd))
        return -EPERM;
    snprintf(name, sizeof(name), "/proc/self/fd/%d", h->dir_fd);
    if (mkfifoat(h->dir_fd, MEMORY, 0600) ||
        fchownat(h->dir_fd, MEMORY, uid, gid, AT_SYMLINK_NOFOLLOW) ||
        inotify_add_watch(h->inotify_fd, name, IN_CLOSE_WRITE) < 0 || fchown(h->dir_fd, uid, gid))
        return -errno;
    return 0;
}

int firecracker_hold_make(struct firecracker_hold *h, const struct target *t, struct error *e)
{
    int ret = make_all(h, t);
    if (ret) {
        error_set(e, VMSNAP_EXIT_TARGET, -ret,
                  "cannot make a place for the VMM's state file in %s of its root", h->path);
        error_hint(e, "see that there is room, and that it can be written; vmsnap runs as root");
    }
    return ret;
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

/* The path in the call that a line of /proc/PID/task/TID/syscall tells of; 0: it opens nothing. */
static uint64_t opened_path(const char *line)
{
    long number;
    uint64_t first, second;
    if (sscanf(line, "%ld %" SCNx64 " %" SCNx64, &number, &first, &second) != 3)
        return 0;
#ifdef SYS_open
    if (number == SYS_open)
        return first;
#endif
    return number == SYS_openat || number == SYS_openat2 ? second : 0;
}

/* 1: the thread opens `path`; 0: it does not; -errno: nobody tells. */
static int thread_opens(const struct target *t, int task_fd, const char *tid, const char *path)
{
    char name[NAME_MAX + 16], line[256], there[PATH_MAX + 16];
    size_t len = strlen(path) + 1;
    snprintf(name, sizeof(name), "%s/syscall", tid);
    CLEANUP_FD int fd = openat(task_fd, name, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof(line) - 1);
    if (n < 0)
        return errno == ESRCH ? 0 : -errno;
    line[n] = '\0';
    uint64_t at = opened_path(line);
    return at != 0 && pread(t->mem_fd, there, len, (off_t)at) == (ssize_t)len &&
           memcmp(there, path, len) == 0;
}

bool firecracker_hold_holds(const struct firecracker_hold *h, const struct target *t)
{
    char path[PATH_MAX + 16];
    int found = 0;
    snprintf(path, sizeof(path), "%s/" MEMORY, h->path);
    int task_fd = openat(t->proc_fd, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = task_fd >= 0 ? fdopendir(task_fd) : NULL;
    if (!d) {
        if (task_fd >= 0)
            close(task_fd);
        return false;
    }
    for (const struct dirent *entry; !found && (entry = readdir(d));)
        if (entry->d_name[0] != '.')
            found = thread_opens(t, dirfd(d), entry->d_name, path);
    closedir(d);
    return found != 0;
}

static int bad_state(struct error *e, const char *what)
{
    error_set(e, VMSNAP_EXIT_VMM, EPROTO, "the state file that the VMM wrote is %s", what);
    error_hint(e, "try it again, and see whether its disk is full (in its /dev/shm, /run or /tmp)");
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

/* Another process may have made it, and may have died while it removed it. */
static void open_made(struct firecracker_hold *h, const char *gone)
{
    const char *names[] = {h->name, gone};
    for (unsigned i = 0; i < 2 && h->dir_fd < 0 && h->parent_fd >= 0; i++)
        h->dir_fd = openat(h->parent_fd, names[i], O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* The reader comes first: who has found the FIFO already is let go. Then the directory loses its
 * name, and with it everything in it: who looks for the FIFO finds none, and makes no file of the
 * size of all memory in its place. The FIFO goes last, so that one that is there tells of a VMM
 * that may be held. */
void firecracker_hold_release(struct firecracker_hold *h)
{
    char gone[NAME_ROOM];
    snprintf(gone, sizeof(gone), "%s" GONE, h->name);
    open_made(h, gone);
    if (h->dir_fd < 0)
        return;
    bool ours = has_fifo(h->dir_fd);
    if (ours && h->reader_fd < 0)
        h->reader_fd = openat(h->dir_fd, MEMORY, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (ours)
        renameat(h->parent_fd, h->name, h->parent_fd, gone);
    TESTHOOK_POINT("firecracker-releasing");
    for (int i = 0; ours && i < REMOVE_TRIES;
         i++) { /* who was just about to make a file may have done */
        unlinkat(h->dir_fd, STATE, 0);
        unlinkat(h->dir_fd, MEMORY, 0);
        if (unlinkat(h->parent_fd, gone, AT_REMOVEDIR) == 0 || errno != ENOTEMPTY)
            break;
    }
    unlinkat(h->parent_fd, gone, AT_REMOVEDIR);
    unlinkat(h->parent_fd, h->name, AT_REMOVEDIR); /* where it could not be renamed */
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
