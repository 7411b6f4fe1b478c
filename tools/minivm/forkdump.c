/*
 * forkdump.c - see forkdump.h. The child of a process with threads may only do what a signal
 * handler may: it writes, starts zstd by posix_spawn() (which copies no page tables), syncs and
 * ends.
 */
#include "forkdump.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vm.h"

#define PIECE_BYTES (1u << 20)

static struct {
    pid_t pid; /* 0: none ever */
    bool running;
    int status;
    uint64_t begin_ns, fork_ns, end_ns, bytes;
    int fd; /* the file, for its size at the end */
} last = {.fd = -1};

static bool is_zero(const uint8_t *p, size_t bytes)
{
    return p[0] == 0 && memcmp(p, p + 1, bytes - 1) == 0;
}

/* With `sparse` nothing is written for pieces of zeros. 0 or errno. */
static int write_memory(const struct memory *m, int fd, bool sparse)
{
    for (uint64_t at = 0; at < m->bytes;) {
        const uint8_t *piece = memory_page(m, at / GUEST_PAGE_BYTES) + at % GUEST_PAGE_BYTES;
        uint64_t room = memory_pages_on(m, at / GUEST_PAGE_BYTES) * GUEST_PAGE_BYTES;
        size_t bytes = (size_t)(room < PIECE_BYTES ? room : PIECE_BYTES) - at % GUEST_PAGE_BYTES;
        if (sparse && is_zero(piece, bytes)) {
            if (lseek(fd, (off_t)bytes, SEEK_CUR) < 0)
                return errno;
            at += bytes;
            continue;
        }
        ssize_t n = write(fd, piece, bytes);
        if (n < 0 && errno != EINTR)
            return errno;
        at += n > 0 ? (uint64_t)n : 0;
    }
    return 0;
}

/* Starts zstd, from *pipe_fd to `fd`. 0 or errno. */
static int start_zstd(int fd, int *pipe_fd, pid_t *pid)
{
    static char *const argv[] = {"zstd", "-1", "-T0", "-q", "-c", NULL};
    static char *const environment[] = {"PATH=/usr/local/bin:/usr/bin:/bin", NULL};
    posix_spawn_file_actions_t actions;
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return errno;
    fcntl(ends[1], F_SETPIPE_SZ, PIECE_BYTES); /* a smaller one will do */
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[0], 0);
    posix_spawn_file_actions_adddup2(&actions, fd, 1);
    int r = posix_spawnp(pid, "zstd", &actions, NULL, argv, environment);
    close(ends[0]);
    *pipe_fd = ends[1];
    return r;
}

static int dump_compressed(const struct memory *m, int fd)
{
    pid_t zstd = -1;
    int pipe_fd = -1, status = 0, r = start_zstd(fd, &pipe_fd, &zstd);
    if (r != 0)
        return r;
    r = write_memory(m, pipe_fd, false);
    close(pipe_fd);
    if (waitpid(zstd, &status, 0) != zstd || status != 0)
        return r ? r : EPIPE;
    return r;
}

static int dump_raw(const struct memory *m, int fd)
{
    return ftruncate(fd, (off_t)m->bytes) ? errno : write_memory(m, fd, true);
}

/* The child. Its exit status is an errno. */
static _Noreturn void dump(const struct memory *m, int fd, bool compress, pid_t parent)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(ECHILD);
    int r = compress ? dump_compressed(m, fd) : dump_raw(m, fd);
    if (r == 0 && fsync(fd) != 0)
        r = errno;
    _exit(r);
}

bool forkdump_start(const struct memory *m, const char *path, bool compress, uint64_t *fork_ns,
                    char *why, size_t why_bytes)
{
    if (m->fd >= 0 || last.running) {
        snprintf(why, why_bytes, "%s",
                 last.running ? "a dump is under way" : "fork() does not copy shared memory");
        return false;
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) {
        snprintf(why, why_bytes, "%s: %s", path, strerror(errno));
        return false;
    }
    pid_t self = getpid();
    uint64_t begin_ns = vm_now_ns();
    pid_t pid = fork();
    if (pid == 0)
        dump(m, fd, compress, self);
    *fork_ns = vm_now_ns() - begin_ns;
    if (pid < 0) {
        snprintf(why, why_bytes, "fork: %s", strerror(errno));
        close(fd);
        return false;
    }
    last.pid = pid, last.running = true, last.fd = fd;
    last.begin_ns = begin_ns, last.fork_ns = *fork_ns;
    return true;
}

bool forkdump_reap(void)
{
    struct stat st = {0};
    if (!last.running || waitpid(last.pid, &last.status, WNOHANG) != last.pid)
        return false;
    last.running = false;
    last.end_ns = vm_now_ns();
    fstat(last.fd, &st);
    last.bytes = (uint64_t)st.st_blocks * 512;
    close(last.fd);
    last.fd = -1;
    return true;
}

/* What the child says, as a text; NULL: all is well. */
static const char *problem(void)
{
    if (WIFSIGNALED(last.status))
        return strsignal(WTERMSIG(last.status));
    return WEXITSTATUS(last.status) ? strerror(WEXITSTATUS(last.status)) : NULL;
}

json_t *forkdump_status(void)
{
    if (last.pid == 0)
        return json_null();
    json_t *o = json_pack("{s:b,s:I,s:I}", "running", last.running, "begin_ns",
                          (json_int_t)last.begin_ns, "fork_ns", (json_int_t)last.fork_ns);
    if (last.running)
        return o;
    json_object_set_new(o, "end_ns", json_integer((json_int_t)last.end_ns));
    json_object_set_new(o, "bytes", json_integer((json_int_t)last.bytes));
    if (problem())
        json_object_set_new(o, "error", json_string(problem()));
    return o;
}
