/*
 * vmm.c - see vmm.h.
 *
 * We listen in a directory of our own and the VMM connects to us, so that no socket of the VM has
 * to be free or known, and a wrapper can stand between: whoever connects is asked for his pid
 * (SO_PEERCRED), and only a descendant of ours is let in. We are a subreaper, so that a VMM whose
 * wrapper has ended becomes our child and its status is ours to see.
 *
 * The directory may be entered by all and the socket be written by all, since the VMM may run as
 * another user (private_dir.c).
 */
#include "restore/launch/vmm.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/testhook.h"
#include "restore/launch/keeper.h"

#define END_GRACE_MS 2000
#define END_KILL_MS 10000
#define LOOK_MS 50   /* how often is looked at a VMM that a wrapper has left to us */
#define MAX_DEPTH 32 /* of wrappers between us and the VMM */

#define INHERITED_END 1024       /* a recorded line inherits no descriptor from here on */
#define CLOSE_ON_EXEC_RANGE 0x4u /* CLOSE_RANGE_CLOEXEC, Linux 5.11 */

/* ---- the private socket ---- */

static int listen_privately(struct vmm *v)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", v->private.socket_path);
    v->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (v->listen_fd < 0 || bind(v->listen_fd, (struct sockaddr *)&address, sizeof(address)) ||
        chmod(v->private.socket_path, 0666) || listen(v->listen_fd, 8))
        return -errno;
    return 0;
}

int vmm_prepare(struct vmm *v, struct error *e)
{
    *v = (struct vmm){.listen_fd = -1, .keeper_fd = -1, .child_status = -1, .vmm_status = -1};
    int rc = private_dir_make(&v->private);
    if (rc == 0)
        rc = keeper_start(&v->keeper_fd, v->private.path, v->private.socket_path);
    if (rc == 0)
        rc = listen_privately(v);
    if (rc) {
        vmm_end(v);
        return error_set(e, VMSNAP_EXIT_FAILED, -rc, "can't make a private socket for the VMM");
    }
    return 0;
}

/* ---- starting ---- */

enum start_stage { START_USER, START_DIRECTORY, START_EXEC };

struct start_failure {
    enum start_stage stage;
    int err;
};

static _Noreturn void fail_start(int fd, enum start_stage stage)
{
    struct start_failure f = {.stage = stage, .err = errno};
    if (write(fd, &f, sizeof(f)) != sizeof(f))
        _exit(126);
    _exit(127);
}

/* Takes on the recorded user: the kernel lets us give rights up, never gain any. */
static int become(const struct relaunch *l)
{
    if (!l->as_user)
        return 0;
    if (geteuid() != 0) {
        if (l->uid == geteuid() && l->gid == getegid())
            return 0;
        errno = EPERM;
        return -1;
    }
    return setgroups(l->n_groups, l->groups) || setresgid(l->gid, l->gid, l->gid) ||
                   setresuid(l->uid, l->uid, l->uid)
               ? -1
               : 0;
}

/* Whether a word of the line holds the number. */
static bool is_named(const struct relaunch *l, int fd)
{
    char number[16];
    int len = snprintf(number, sizeof(number), "%d", fd);
    for (size_t i = 1; i < l->argc; i++)
        for (const char *p = l->argv[i]; (p = strstr(p, number)); p++)
            if ((p == l->argv[i] || !isalnum((unsigned char)p[-1])) &&
                !isalnum((unsigned char)p[len]))
                return true;
    return false;
}

/* A recorded line gets nothing of the caller's that it can't have had: no ambient capability, and
 * no descriptor whose number does not stand on it. */
static void drop_rights(const struct relaunch *l)
{
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    unsigned from = STDERR_FILENO + 1;
    for (int fd = STDERR_FILENO + 1; fd < INHERITED_END; fd++) {
        if (!relaunch_fd_inherited(fd) || !is_named(l, fd))
            continue;
        if ((unsigned)fd > from)
            syscall(SYS_close_range, from, fd - 1, CLOSE_ON_EXEC_RANGE);
        from = (unsigned)fd + 1;
    }
    syscall(SYS_close_range, from, ~0u, CLOSE_ON_EXEC_RANGE);
}

static void reset_signals(void)
{
    struct sigaction action = {.sa_handler = SIG_DFL};
    for (int sig = 1; sig < NSIG; sig++)
        sigaction(sig, &action, NULL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Detached: nothing of the caller's stays open in the VMM. */
static void replace_stdio(int stderr_fd)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null >= 0) {
        dup2(null, STDIN_FILENO);
        dup2(null, STDOUT_FILENO);
    }
    dup2(stderr_fd, STDERR_FILENO);
}

static _Noreturn void run_child(const struct relaunch *l, int stderr_fd, int report_fd)
{
    reset_signals();
    if (stderr_fd >= 0)
        replace_stdio(stderr_fd);
    if (l->recorded)
        drop_rights(l);
    if (become(l))
        fail_start(report_fd, START_USER);
    if (l->cwd && chdir(l->cwd))
        fail_start(report_fd, START_DIRECTORY);
    if (l->environment)
        environ = l->environment;
    unsetenv("NOTIFY_SOCKET"); /* ours: a VMM must not tell the service manager that it is ready */
    if (l->executable)
        execv(l->executable, l->argv);
    else
        execvp(l->argv[0], l->argv);
    fail_start(report_fd, START_EXEC);
}

static int explain_failure(const struct relaunch *l, const struct start_failure *f, struct error *e)
{
    const char *program = l->executable ? l->executable : l->argv[0];
    switch (f->stage) {
    case START_USER:
        error_set(e, VMSNAP_EXIT_MISMATCH, f->err,
                  "the VM ran as user %u, group %u, which we may not become", (unsigned)l->uid,
                  (unsigned)l->gid);
        error_hint(e, "run vmsnap as root, or give the command line after --");
        break;
    case START_DIRECTORY:
        error_set(e, VMSNAP_EXIT_MISMATCH, f->err, "the VM's working directory %s can't be entered",
                  l->cwd);
        error_hint(e, "make that directory, or give the command line after --");
        break;
    case START_EXEC:
        error_set(e, VMSNAP_EXIT_VMM, f->err, "%s can't be run", program);
        error_hint(e, "install it, or give another command line after --");
        break;
    }
    return -f->err;
}

int vmm_start(struct vmm *v, const struct relaunch *l, bool detached, struct error *e)
{
    int fds[2];
    CLEANUP_FD int stderr_fd = -1;
    if (pipe2(fds, O_CLOEXEC))
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't make a pipe");
    if (detached && relay_start(&v->relay, &stderr_fd)) {
        close(fds[0]);
        close(fds[1]);
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't take the VMM's stderr");
    }
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    v->launched_ns = clock_monotonic_ns();
    pid_t child = fork();
    if (child == 0)
        run_child(l, stderr_fd, fds[1]);
    int err = errno;
    close(fds[1]);
    CLEANUP_FD int from_child = fds[0];
    if (child < 0)
        return error_set(e, VMSNAP_EXIT_VMM, err, "can't start a process for the VMM");
    TESTHOOK_POINT("restore-forked");
    atomic_store(&v->child, child);
    keeper_watch(v->keeper_fd, child);
    struct start_failure f;
    ssize_t n;
    do
        n = read(from_child, &f, sizeof(f)); /* 0: it runs another program now */
    while (n < 0 && errno == EINTR);
    return n == (ssize_t)sizeof(f) ? explain_failure(l, &f, e) : 0;
}

/* ---- who connects ---- */

static pid_t parent_of(pid_t pid)
{
    char path[64], text[512];
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    CLEANUP_STREAM FILE *f = fopen(path, "re");
    size_t n = f ? fread(text, 1, sizeof(text) - 1, f) : 0;
    text[n] = '\0';
    char *name_end = strrchr(text, ')'); /* the name before it may hold anything */
    int parent;
    return name_end && sscanf(name_end + 1, " %*c %d", &parent) == 1 ? parent : 0;
}

static bool is_descendant(pid_t pid)
{
    for (int depth = 0; depth < MAX_DEPTH && pid > 1; depth++) {
        pid = parent_of(pid);
        if (pid == getpid())
            return true;
    }
    return false;
}

/* The next connection of a descendant: its fd and *pid; -EAGAIN: none now. */
static int accept_descendant(struct vmm *v, pid_t *pid)
{
    int fd = accept4(v->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return errno == EINTR || errno == ECONNABORTED ? -EAGAIN : -errno;
    struct ucred peer;
    socklen_t len = sizeof(peer);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 && is_descendant(peer.pid)) {
        *pid = peer.pid;
        return fd;
    }
    close(fd);
    return -EAGAIN;
}

/* Of whom a wrapper has left to us nothing but a look tells that they have ended. */
static int wait_for_connection(struct vmm *v, int child_fd, uint64_t deadline_ns, pid_t *pid)
{
    for (;;) {
        struct pollfd fds[2] = {{.fd = v->listen_fd, .events = POLLIN},
                                {.fd = child_fd, .events = POLLIN}};
        int left_ms = clock_ms_until(deadline_ns);
        int n = poll(fds, 2, child_fd < 0 && left_ms > LOOK_MS ? LOOK_MS : left_ms);
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0 && fds[0].revents) {
            int fd = accept_descendant(v, pid);
            if (fd != -EAGAIN)
                return fd;
        } else if (n > 0 || (n == 0 && child_fd < 0)) {
            child_fd = -1;
            if (vmm_reap(v)) /* we have no child left: it is over */
                return -ECHILD;
        }
        if (n == 0 && left_ms == 0)
            return -ETIMEDOUT;
    }
}

int vmm_accept(struct vmm *v, int *fd, int timeout_ms, struct error *e)
{
    CLEANUP_FD int child_fd = (int)syscall(SYS_pidfd_open, atomic_load(&v->child), 0);
    pid_t pid = 0;
    uint64_t deadline = clock_monotonic_ns() + (uint64_t)timeout_ms * 1000000u;
    int rc = wait_for_connection(v, child_fd, deadline, &pid);
    if (rc == -ECHILD) {
        error_set(e, VMSNAP_EXIT_VMM, 0, "the VMM did not start");
        vmm_explain_end(v, e);
        return -ECHILD;
    }
    if (rc == -ETIMEDOUT) {
        error_set(e, VMSNAP_EXIT_TIMEOUT, ETIMEDOUT, "the VMM has not come up within %d ms",
                  timeout_ms);
        error_hint(e, "its command line may wait for something (a server socket with wait=on); "
                      "--timeout gives it longer");
        return rc;
    }
    if (rc < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, -rc, "waiting for the VMM failed");
    *fd = rc;
    close(v->listen_fd);
    v->listen_fd = -1;
    private_dir_remove(&v->private);
    rc = target_open(&v->target, pid, e);
    if (rc) {
        close(*fd);
        *fd = -1;
        return rc;
    }
    v->has_target = true;
    atomic_store(&v->pid, pid);
    if (pid != atomic_load(&v->child))
        keeper_watch(v->keeper_fd, pid);
    return 0;
}

/* ---- the end ---- */

bool vmm_reap(struct vmm *v)
{
    /* Looked at first: if it ends in between, its status is here the next time. */
    bool vmm_gone = v->has_target && !target_alive(&v->target);
    if (vmm_gone)
        atomic_store(&v->ended, true);
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid == atomic_load(&v->pid))
            v->vmm_status = status;
        if (pid == atomic_load(&v->child)) {
            v->child_status = status;
            atomic_store(&v->child, 0);
        }
    }
    if (!v->has_target)
        vmm_gone = pid < 0; /* our own processes (common/child.h) don't count */
    return vmm_gone && atomic_load(&v->child) == 0;
}

static int shell_status(int status)
{
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

int vmm_exit_status(const struct vmm *v)
{
    int status = v->vmm_status != -1 ? v->vmm_status : v->child_status;
    return status == -1 ? VMSNAP_EXIT_FAILED : shell_status(status);
}

void vmm_explain_end(struct vmm *v, struct error *e)
{
    uint64_t deadline =
        clock_monotonic_ns() + 500000000u; /* a peer that hangs up is about to end */
    while (!vmm_reap(v)) {
        if (clock_ms_until(deadline) == 0)
            return;
        usleep(5000);
    }
    int status = vmm_exit_status(v);
    char doing[sizeof(e->message)];
    snprintf(doing, sizeof(doing), "%s", e->message);
    e->hint[0] = '\0';
    if (status > 128)
        error_set(e, VMSNAP_EXIT_VMM, 0, "the VMM was ended by signal %d (%s)", status - 128,
                  strsignal(status - 128));
    else
        error_set(e, VMSNAP_EXIT_VMM, 0, "the VMM ended with status %d", status);
    error_wrap(e, "%.400s", doing);
    error_hint(e, "what it wrote to stderr, above, tells the cause");
}

void vmm_signal(struct vmm *v, int sig)
{
    int pid = atomic_load(&v->ended) ? 0 : atomic_load(&v->pid);
    int child = atomic_load(&v->child);
    if (pid > 0)
        kill(pid, sig);
    else if (child > 0)
        kill(child, sig);
}

/* Ended or not, nobody but vmm_reap() frees its number. Processes of our own (common/child.h),
 * which other threads start and reap, are not waited for in this way. */
static bool is_waited_for(pid_t pid)
{
    siginfo_t info;
    return waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0;
}

void vmm_kill_children(int sig)
{
    CLEANUP_STREAM FILE *f = fopen("/proc/thread-self/children", "re");
    int pid;
    while (f && fscanf(f, "%d", &pid) == 1)
        if (is_waited_for(pid))
            kill(pid, sig);
}

static bool wait_gone(struct vmm *v, int timeout_ms)
{
    uint64_t deadline = clock_monotonic_ns() + (uint64_t)timeout_ms * 1000000u;
    while (!vmm_reap(v)) {
        if (clock_ms_until(deadline) == 0)
            return false;
        usleep(2000);
    }
    return true;
}

static void close_all(struct vmm *v)
{
    if (v->listen_fd >= 0)
        close(v->listen_fd);
    v->listen_fd = -1;
    private_dir_remove(&v->private);
    keeper_dismiss(&v->keeper_fd);
    if (v->has_target)
        target_close(&v->target);
    v->has_target = false;
    relay_stop(&v->relay);
}

/* One that a wrapper left behind and that has not connected is a child of ours, too. */
static bool has_children(void)
{
    siginfo_t info;
    return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0;
}

void vmm_end(struct vmm *v)
{
    if (v->has_target || (v->launched_ns && has_children())) {
        vmm_signal(v, SIGTERM);
        if (!v->has_target)
            vmm_kill_children(SIGTERM);
        if (!wait_gone(v, END_GRACE_MS)) {
            vmm_signal(v, SIGKILL);
            vmm_kill_children(SIGKILL);
            wait_gone(v, END_KILL_MS);
        }
    }
    close_all(v);
}

void vmm_let_live(struct vmm *v)
{
    keeper_dismiss(&v->keeper_fd);
}

void vmm_leave(struct vmm *v)
{
    close_all(v);
}
