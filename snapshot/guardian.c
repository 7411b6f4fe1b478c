#include "snapshot/guardian.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/log.h"

#define TICK_MS 100
/* A worker without a sign of life for less than this may just be short of CPU time. */
#define HEARTBEAT_MIN_MS 1000

/* How the worker hands its result over: through a memfd, so that no pipe can fill up. */
struct result {
    int ret;
    struct error error;
    size_t summary_bytes; /* of JSON text that follows */
};

static int write_all(int fd, const void *data, size_t len)
{
    const char *at = data;
    while (len > 0) {
        ssize_t n = write(fd, at, len);
        if (n < 0)
            return -errno;
        at += n;
        len -= (size_t)n;
    }
    return 0;
}

static void hand_over(int fd, int ret, const struct error *e, json_t *summary)
{
    struct result result = {.ret = ret, .error = *e};
    CLEANUP_FREE char *text = summary ? json_dumps(summary, JSON_COMPACT) : NULL;
    result.summary_bytes = text ? strlen(text) : 0;
    if (write_all(fd, &result, sizeof(result)) || write_all(fd, text, result.summary_bytes))
        _exit(VMSNAP_EXIT_FAILED);
}

static int take_over(int fd, json_t **summary, struct error *e)
{
    struct result result;
    if (pread(fd, &result, sizeof(result), 0) != (ssize_t)sizeof(result))
        return error_set(e, VMSNAP_EXIT_FAILED, 0, "the worker ended without a result");
    *e = result.error;
    if (result.summary_bytes) {
        CLEANUP_FREE char *text = malloc(result.summary_bytes);
        if (text &&
            pread(fd, text, result.summary_bytes, sizeof(result)) == (ssize_t)result.summary_bytes)
            *summary = json_loadb(text, result.summary_bytes, 0, NULL);
        if (!*summary)
            return error_set(e, VMSNAP_EXIT_FAILED, 0, "the worker's summary is unreadable");
    }
    return result.ret;
}

static _Noreturn void be_worker(struct guardian *g, pid_t parent, int result_fd)
{
    setsid();
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(VMSNAP_EXIT_FAILED); /* killed before we could be told */
    struct error e = {0};
    json_t *summary = NULL;
    int ret = g->work(g->opaque, g->board, &summary, &e);
    hand_over(result_fd, ret, &e, summary);
    /* A thread that hangs in the kernel must not keep exit handlers waiting. */
    _exit(0);
}

/* How the worker ended, in words: *e has the exit code and the message, not the guest's state. */
static void explain_death(const struct guardian_board *b, int status, int interrupted_by,
                          struct error *e)
{
    const char *published = "";
    enum vmsnap_exit code = VMSNAP_EXIT_FAILED;
    if (atomic_load(&((struct guardian_board *)b)->published)) {
        published = "; the image was complete and has its name";
        code = VMSNAP_EXIT_WARNINGS;
    }
    if (interrupted_by == SIGINT)
        error_set(e, VMSNAP_EXIT_SIGINT, 0, "interrupted by SIGINT%s", published);
    else if (interrupted_by == SIGTERM)
        error_set(e, VMSNAP_EXIT_SIGTERM, 0, "interrupted by SIGTERM%s", published);
    else if (WIFSIGNALED(status))
        error_set(e, code, 0, "the worker was killed by signal %d (%s)%s", WTERMSIG(status),
                  strsignal(WTERMSIG(status)), published);
    else
        error_set(e, code, 0, "the worker ended with status %d%s", WEXITSTATUS(status), published);
}

/* The error of a worker that ended by itself, without having resumed the VM, or that died while it
 * gave up. */
static bool has_told_error(const struct guardian_board *b, int status, int result_fd,
                           int interrupted_by, struct error *e)
{
    json_t *summary = NULL;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        if (interrupted_by || !atomic_load(&((struct guardian_board *)b)->has_told) ||
            !b->told.exit_code) /* a signal that only the worker got: nothing was wrong */
            return false;
        *e = b->told;
        return true;
    }
    bool told = take_over(result_fd, &summary, e) != 0;
    json_decref(summary);
    return told;
}

/* Puts in order what a worker left that died (or could not resume the VM). */
static int clean_up_after(struct guardian *g, int status, int interrupted_by, int result_fd,
                          struct error *e)
{
    struct guardian_board *b = g->board;
    enum guest_state guest = !atomic_load(&b->touched)        ? GUEST_UNTOUCHED
                             : atomic_load(&b->paused_before) ? GUEST_PAUSED
                                                              : GUEST_RUNNING;
    struct error problem = {0};
    if (!has_told_error(b, status, result_fd, interrupted_by, e))
        explain_death(b, status, interrupted_by, e);
    else if (e->guest == GUEST_ENDED) {
        if (b->temporary[0])
            unlink(b->temporary);
        return -EIO;
    }
    if (atomic_load(&b->paused)) {
        int resumed = g->resume(g->opaque, &problem);
        if (resumed == 0)
            guest = GUEST_RUNNING;
        if (resumed < 0) {
            guest = problem.guest == GUEST_ENDED ? GUEST_ENDED : GUEST_UNKNOWN;
            error_wrap(e, "the VM could not be resumed (%s)", problem.message);
            e->hint[0] = '\0'; /* the worker's is older than this */
            error_hint(e, "%s",
                       problem.hint[0] ? problem.hint : "give \"cont\" to the VM's monitor");
        }
    }
    if (b->temporary[0])
        unlink(b->temporary);
    if (atomic_load(&b->unmerged) && g->remerge(g->opaque, &problem))
        log_warn("KSM stays off for the VM's memory: %s", problem.message);
    e->guest = guest;
    return -EIO;
}

struct heartbeat {
    unsigned beat;
    uint64_t since_ns; /* it beats no more since then */
    uint64_t looked_ns;
    bool killed;
};

/* The heartbeat of a worker that holds memory protected: kills it when it has none. */
static void watch_heartbeat(struct guardian *g, pid_t worker, struct heartbeat *h)
{
    unsigned beat = atomic_load(&g->board->beat);
    uint64_t now = clock_monotonic_ns();
    bool matters = atomic_load(&g->board->protected) || atomic_load(&g->board->paused);
    int limit_ms = g->max_stall_ms > HEARTBEAT_MIN_MS ? g->max_stall_ms : HEARTBEAT_MIN_MS;
    /* We did not run either (suspended, frozen): that says nothing about the worker. */
    bool slept = now - h->looked_ns > HEARTBEAT_MIN_MS * 1000000ull;
    h->looked_ns = now;
    if (beat != h->beat || !matters || slept) {
        h->beat = beat;
        h->since_ns = now;
    } else if (!h->killed && now - h->since_ns > (uint64_t)limit_ms * 1000000u) {
        h->killed = true;
        kill(worker, SIGKILL); /* before anything that could block, a message say */
        log_warn("no sign of life from the worker for %d ms: ended it", limit_ms);
    }
}

/* Waits for the worker; continues it when it is stopped. Returns its wait status. */
static int watch(struct guardian *g, pid_t worker, int signal_fd, int *interrupted_by)
{
    uint64_t now = clock_monotonic_ns();
    /* The first look may come late, when the worker protects already and has not yet beaten. */
    struct heartbeat heartbeat = {.since_ns = now, .looked_ns = now};
    for (;;) {
        int status;
        pid_t got = waitpid(worker, &status, WNOHANG | WUNTRACED);
        if (got == worker && !WIFSTOPPED(status))
            return status;
        if (got < 0 && errno == ECHILD)
            return SIGKILL; /* gone, and reaped by somebody else: as if it had been killed */
        if (got == worker) {
            kill(worker, SIGCONT);
            log_warn("the worker was stopped; it was continued, since the guest depends on it");
        }
        watch_heartbeat(g, worker, &heartbeat);
        if (*interrupted_by && atomic_load(&g->board->finishing))
            kill(worker, SIGKILL); /* it may hang on a sink that nobody reads */
        struct pollfd p = {.fd = signal_fd, .events = POLLIN};
        if (poll(&p, 1, TICK_MS) <= 0)
            continue;
        struct signalfd_siginfo info;
        if (read(signal_fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
            continue;
        if (info.ssi_signo == SIGINT || info.ssi_signo == SIGTERM)
            *interrupted_by = (int)info.ssi_signo;
        if (*interrupted_by || info.ssi_signo == SIGUSR1)
            kill(worker, (int)info.ssi_signo);
    }
}

int guardian_run(struct guardian *g, json_t **summary, struct error *e)
{
    g->board =
        mmap(NULL, sizeof(*g->board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (g->board == MAP_FAILED)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "cannot start");
    CLEANUP_FD int result_fd = memfd_create("vmsnap-result", MFD_CLOEXEC);
    sigset_t watched, old;
    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    sigaddset(&watched, SIGINT);
    sigaddset(&watched, SIGTERM);
    sigaddset(&watched, SIGUSR1);
    sigprocmask(SIG_BLOCK, &watched, &old);
    /* Ignored, as some parents leave it, would mean that there is nothing to wait for. */
    signal(SIGCHLD, SIG_DFL);
    /* A terminal must not stop us while a guest depends on us. */
    signal(SIGTSTP, SIG_IGN);
    signal(SIGTTIN, SIG_IGN);
    signal(SIGTTOU, SIG_IGN);
    CLEANUP_FD int signal_fd = signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
    pid_t parent = getpid();
    pid_t worker = result_fd < 0 || signal_fd < 0 ? -1 : fork();
    if (worker == 0)
        be_worker(g, parent, result_fd);
    int ret;
    if (worker < 0) {
        ret = error_set(e, VMSNAP_EXIT_FAILED, errno, "cannot start the worker process");
    } else {
        int interrupted_by = 0;
        int status = watch(g, worker, signal_fd, &interrupted_by);
        bool orderly = WIFEXITED(status) && WEXITSTATUS(status) == 0;
        if (orderly && !atomic_load(&g->board->paused))
            ret = take_over(result_fd, summary, e);
        else
            ret = clean_up_after(g, status, interrupted_by, result_fd, e);
    }
    sigprocmask(SIG_SETMASK, &old, NULL);
    munmap(g->board, sizeof(*g->board));
    g->board = NULL;
    return ret;
}
