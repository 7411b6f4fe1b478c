/*
 * stop.c - stopping a thread of the target, and waiting for its stops. Every wait is a look
 * (WNOWAIT): see inject/tracer.c for why.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/inject/tracer.h"
#include "common/testhook.h"

/* How long one thread may take to stop before the next one is tried. A thread that waits for a CPU
 * stops when it gets one. */
#define STOP_SLOT_NS 30000000ull

int tracee_wait_stop(pid_t tid, uint64_t deadline_ns, int *status)
{
    for (unsigned spins = 0;; spins++) {
        siginfo_t si = {0};
        if (waitid(P_PID, (id_t)tid, &si, WSTOPPED | WEXITED | WNOHANG | WNOWAIT | __WALL) != 0)
            return errno == ECHILD ? -ESRCH : -errno;
        if (si.si_pid == tid && si.si_code != CLD_TRAPPED && si.si_code != CLD_STOPPED)
            return -ESRCH; /* exited or killed; the end of our thread lets go of it */
        if (si.si_pid == tid) {
            *status = si.si_status;
            return 0;
        }
        if (clock_monotonic_ns() >= deadline_ns)
            return -ETIMEDOUT;
        if (spins < 200) {
            sched_yield();
        } else {
            struct timespec pause = {.tv_nsec = spins < 400 ? 20000 : 500000};
            nanosleep(&pause, NULL);
        }
    }
}

int tracee_let_go(int request, pid_t tid, int signal)
{
    return ptrace(request, tid, NULL, (void *)(intptr_t)signal) == 0 ? 0 : -errno;
}

int tracee_wait_interrupted(pid_t tid, uint64_t deadline_ns)
{
    for (;;) {
        int status = 0;
        int r = tracee_wait_stop(tid, deadline_ns, &status);
        if (r)
            return r;
        if (STOP_IS_EVENT(status))
            return 0;
        r = tracee_let_go(PTRACE_CONT, tid,
                          STOP_IS_SYSCALL(status) || status >> 8 ? 0 : status & 0x7f);
        if (r)
            return r;
    }
}

uint64_t tracee_number(const struct target *t, pid_t tid, const char *key, int base)
{
    char path[64];
    uint64_t value = 0;
    snprintf(path, sizeof(path), "task/%d/status", (int)tid);
    return target_status_number_of(t, path, key, base, &value) == 0 ? value : 0;
}

static bool read_name(pid_t pid, char *name, size_t size)
{
    char path[32];
    snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, name, size - 1);
    if (n <= 0)
        return false;
    name[n] = '\0';
    name[strcspn(name, "\n")] = '\0';
    return true;
}

/* PTRACE_SEIZE said no: -EAGAIN if only because the thread is ending, -EBUSY while somebody else
 * traces it, else for good. */
static int refused(const struct tracer *tr, pid_t tid, int err, struct error *e)
{
    pid_t by = (pid_t)tracee_number(tr->t, tid, "TracerPid", 10);
    char name[64];
    if (by > 0) {
        if (!read_name(by, name, sizeof(name)))
            snprintf(name, sizeof(name), "?");
        error_set(e, VMSNAP_EXIT_TARGET, 0,
                  "process %d is being traced already, by process %d (%s)", (int)tr->t->pid,
                  (int)by, name);
        error_hint(e, "end the debugger or tracer first");
        return -EBUSY;
    }
    if (strchr("ZX", tracee_state(tr->t, tid))) /* or gone: '\0' */
        return -EAGAIN;
    error_set(e, VMSNAP_EXIT_TARGET, err, "process %d: attaching to thread %d was refused",
              (int)tr->t->pid, (int)tid);
    error_hint(e, "run vmsnap as root (CAP_SYS_PTRACE); a security module may forbid it too");
    return -err;
}

/* Twice: whoever traced it at the first try may have let go before it could be seen who it was. */
static long seize(pid_t tid)
{
    long rc = ptrace(PTRACE_SEIZE, tid, NULL, (void *)PTRACE_O_TRACESYSGOOD);
    if (rc != 0 && errno == EPERM)
        rc = ptrace(PTRACE_SEIZE, tid, NULL, (void *)PTRACE_O_TRACESYSGOOD);
    return rc;
}

static bool is_slow(const struct tracer *tr, pid_t tid)
{
    for (unsigned i = 0; i < tr->n_slow; i++) {
        if (tr->slow[i] == tid)
            return true;
    }
    return false;
}

static void forget_slow(struct tracer *tr, pid_t tid)
{
    for (unsigned i = 0; i < tr->n_slow; i++) {
        if (tr->slow[i] == tid)
            tr->slow[i--] = tr->slow[--tr->n_slow];
    }
}

/* The very first thing after the stop, so that it holds whatever becomes of us afterwards: some
 * calls end with EINTR merely because we stopped them. */
static void make_repeatable(pid_t tid)
{
    struct user_regs_struct regs;
    if (x86_get_regs(tid, &regs) == 0 && x86_make_repeatable(&regs))
        x86_set_regs(tid, &regs);
}

int tracer_stop_thread(struct tracer *tr, pid_t tid, uint64_t deadline_ns, struct error *e)
{
    uint64_t slot_ns = clock_monotonic_ns() + STOP_SLOT_NS;
    if (is_slow(tr, tid)) {
        slot_ns = 0;
    } else if (tr->n_slow == TRACER_SLOW_MAX) {
        return -EAGAIN;
    } else {
        if (seize(tid) != 0)
            return errno == ESRCH ? -EAGAIN : refused(tr, tid, errno, e);
        TESTHOOK_POINT("inject-seized");
        tr->slow[tr->n_slow++] = tid;
        if (ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) != 0)
            return -EAGAIN;
    }
    int r = tracee_wait_interrupted(tid, slot_ns < deadline_ns ? slot_ns : deadline_ns);
    if (r == 0) {
        forget_slow(tr, tid);
        make_repeatable(tid);
        return 0;
    }
    tr->why_not = "it did not stop";
    return -EAGAIN;
}
