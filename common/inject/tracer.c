/*
 * tracer.c - theory of operation
 *
 * A thread is seized and interrupted. The kernel takes it out of its system call and stops it in
 * signal delivery (PTRACE_EVENT_STOP), with the call's result or a restart code in rax. From here:
 *
 *   step                                  what the thread does if we are killed after it
 *   1 frame written below the red zone    goes on as the kernel would let it: the call restarts
 *   2 registers parked on the frame       rt_sigreturn: everything is back
 *   3 all signals masked                  the same; the frame holds the true mask
 *   4 let go until the entry of its
 *     rt_sigreturn (PTRACE_SYSCALL)       the same
 *   5 that entry turned into our call     makes our call, returns into the restorer: the same
 *   6 let go until the call's exit        the same
 *   7 parked again; 4 to 6 for each call  the same
 *   8 interrupted again: stops in signal
 *     delivery, having run nothing        the same
 *   9 true signal mask set                the same
 *  10 true registers set, detached        goes on as the kernel would let it
 *
 * The normal end (8 to 10) is not the frame, because only the kernel's own restart keeps relative
 * timeouts and honours handlers without SA_RESTART. The frame is for our death.
 *
 * What must not be done: PTRACE_SINGLESTEP or plain syscall stops without PTRACE_O_TRACESYSGOOD
 * (when the tracer dies, the kernel sends the thread the stop's code as a signal: 5 would kill it,
 * 0x85 is no signal); and collecting a stop with wait(), which clears that code: a signal whose
 * delivery was reported to us and not yet passed on would be lost with us. So every wait here is a
 * look (WNOWAIT).
 *
 * A seccomp filter is suspended, by ptrace option, as long as we live. It looks at a call after
 * the tracer does (ptrace(2), since 4.8), and the parked call is rt_sigreturn, which filters let
 * pass. Only if we die between steps 5 and 6 does the filter get to see our call: it may then fail
 * with the filter's error, and a filter that kills, kills.
 */
#include "common/inject/tracer.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/inject/inject.h"
#include "common/testhook.h"

#ifndef PTRACE_O_SUSPEND_SECCOMP
#define PTRACE_O_SUSPEND_SECCOMP (1 << 21)
#endif

#define MS_NS 1000000ull
/* So many times round the threads, those with a signal about to be delivered are passed over. */
#define PATIENT_ROUNDS 20
#define PAGE_BYTES 4096ull

/*
 * Is the memory below this stack pointer the thread's own to use? The main thread's stack has a
 * name; a thread of libc's has its control block (fs_base) at the high end of its stack. Other
 * stacks (coroutines, alternate signal stacks) may end anywhere.
 */
static bool stack_is_usable(const struct tracer *tr, const struct mapping_list *maps)
{
    const struct user_regs_struct *regs = &tr->saved.regs;
    const struct mapping *m = mapping_find(maps, regs->rsp);
    if (!m || !m->writable || tr->frame.scratch < m->start)
        return false;
    return strcmp(m->name, "[stack]") == 0 || (regs->fs_base > regs->rsp && regs->fs_base < m->end);
}

/* A signal would be delivered right now. Our frame could not tell whether its handler wants the
 * interrupted call restarted. SIGSTOP has none, and stays pending while a process is stopped. */
static bool signal_is_due(const struct tracer *tr)
{
    uint64_t blocked = tracee_number(tr->t, tr->tid, "SigBlk", 16);
    uint64_t pending =
        tracee_number(tr->t, tr->tid, "SigPnd", 16) | tracee_number(tr->t, tr->tid, "ShdPnd", 16);
    return (pending & ~blocked & ~(1ull << (SIGSTOP - 1))) != 0;
}

/* Looks at the stopped thread: 0 and `saved` filled, or -EAGAIN. */
static int inspect(struct tracer *tr, const struct mapping_list *maps, struct error *e)
{
    if (x86_has_shadow_stack(tr->tid)) {
        error_set(e, VMSNAP_EXIT_TARGET, 0,
                  "process %d runs with a user shadow stack (CET), which vmsnap can't attach to",
                  (int)tr->t->pid);
        error_hint(e, "start it without (GLIBC_TUNABLES=glibc.cpu.x86_shstk=off)");
        return -ENOTSUP;
    }
    int r = x86_state_get(&tr->saved, tr->tid);
    if (r)
        return r == -ESRCH ? -EAGAIN : r;
    x86_find_restarted(&tr->saved, tr->t);
    x86_frame_plan(&tr->frame, &tr->saved, INJECT_SCRATCH_BYTES);
    if (!x86_in_syscall(&tr->saved.regs))
        tr->why_not = "it was not in a system call";
    else if (!stack_is_usable(tr, maps))
        tr->why_not = "it was on a stack that is not its own";
    else if (tr->rounds < PATIENT_ROUNDS && signal_is_due(tr))
        tr->why_not = "a signal was due";
    else
        return 0;
    x86_state_free(&tr->saved);
    return -EAGAIN;
}

static int suspend_seccomp(struct tracer *tr, struct error *e)
{
    if (tracee_number(tr->t, tr->tid, "Seccomp", 10) == 0)
        return 0;
    unsigned long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP;
    if (ptrace(PTRACE_SETOPTIONS, tr->tid, NULL, (void *)options) == 0)
        return 0;
    int err = errno;
    error_set(e, VMSNAP_EXIT_TARGET, err,
              "process %d runs under a seccomp filter, which could not be suspended",
              (int)tr->t->pid);
    error_hint(e, "run vmsnap as root (CAP_SYS_ADMIN) and outside of any seccomp filter");
    return -err;
}

/* Writes the frame from its high end down, page by page, so that a guard page stops it before
 * anything below the guard is touched. */
static int write_frame(struct tracer *tr)
{
    CLEANUP_FREE uint8_t *image = NULL;
    int r = x86_frame_build(&tr->frame, &tr->saved, &tr->code, &image);
    uint64_t end = tr->frame.end;
    while (r == 0 && end > tr->frame.frame) {
        uint64_t start = (end - 1) & ~(PAGE_BYTES - 1);
        if (start < tr->frame.frame)
            start = tr->frame.frame;
        size_t n = end - start;
        ssize_t put = target_write(tr->t, start, image + (start - tr->frame.frame), n);
        if (put != (ssize_t)n)
            r = put == -ESRCH ? -ESRCH : -EFAULT;
        end = start;
    }
    return r;
}

/* Steps 1 to 3. Until the registers are parked the thread is as it was. */
static int prepare(struct tracer *tr)
{
    int r = write_frame(tr);
    if (r) {
        tr->why_not = "its stack has no room";
        return r;
    }
    TESTHOOK_POINT("inject-frame-written");
    struct user_regs_struct regs = tr->saved.regs;
    x86_park(&regs, &tr->code, &tr->frame);
    r = x86_set_regs(tr->tid, &regs);
    if (r)
        return r;
    tr->parked = true;
    TESTHOOK_POINT("inject-parked");
    return x86_set_sigmask(tr->tid, ~0ull);
}

static int try_thread(struct tracer *tr, pid_t tid, const struct mapping_list *maps,
                      uint64_t deadline_ns, struct error *e)
{
    int r = tracer_stop_thread(tr, tid, deadline_ns, e);
    if (r)
        return r;
    TESTHOOK_POINT("inject-stopped");
    tr->tid = tid;
    r = inspect(tr, maps, e);
    if (r == 0)
        r = suspend_seccomp(tr, e);
    if (r == 0) {
        r = prepare(tr);
        if (r && tr->parked)
            return r; /* the end of our thread lets it find its way back */
        if (r)
            r = -EAGAIN;
    }
    if (r) {
        x86_state_free(&tr->saved);
        tracee_let_go(PTRACE_DETACH, tid, 0);
        tr->tid = 0;
        return r;
    }
    TESTHOOK_POINT("inject-masked");
    return 0;
}

/* One round over the threads. The mappings are read anew: a thread may be younger than the last. */
static int try_all(struct tracer *tr, uint64_t deadline_ns, struct error *e)
{
    struct mapping_list maps;
    CLEANUP_FREE pid_t *tids = NULL;
    size_t count = 0;
    int r = target_mappings_brief(tr->t, &maps, e);
    if (r)
        return r;
    r = tracer_candidates(tr->t, &tids, &count);
    if (r)
        error_set(e, VMSNAP_EXIT_TARGET, -r, "process %d: can't list its threads", (int)tr->t->pid);
    else
        r = -EAGAIN;
    for (size_t i = 0; r == -EAGAIN && i < count && clock_monotonic_ns() < deadline_ns; i++)
        r = try_thread(tr, tids[i], &maps, deadline_ns, e);
    mapping_list_free(&maps);
    return r;
}

static int find_code(struct tracer *tr, struct error *e)
{
    struct mapping_list maps;
    int r = target_mappings_brief(tr->t, &maps, e);
    if (r)
        return r;
    r = x86_find_code(&tr->code, tr->t, &maps);
    mapping_list_free(&maps);
    if (r && !target_alive(tr->t))
        return error_set(e, VMSNAP_EXIT_TARGET, ESRCH, "process %d", (int)tr->t->pid);
    if (r == -ENOENT)
        error_set(e, VMSNAP_EXIT_TARGET, 0,
                  "process %d: no C library's signal return found in its code", (int)tr->t->pid);
    else if (r)
        error_set(e, VMSNAP_EXIT_TARGET, -r, "process %d: can't read its code", (int)tr->t->pid);
    return r;
}

int tracer_attach(struct tracer *tr, const struct target *t, uint64_t deadline_ns, struct error *e)
{
    tr->t = t;
    tr->why_not = "none could be stopped";
    x86_prepare();
    int r = find_code(tr, e);
    if (r)
        return r;
    for (tr->rounds = 0;; tr->rounds++) {
        r = try_all(tr, deadline_ns, e);
        if (r != -EAGAIN)
            break;
        if (!target_alive(t))
            return error_set(e, VMSNAP_EXIT_TARGET, ESRCH, "process %d", (int)t->pid);
        if (clock_monotonic_ns() >= deadline_ns)
            break;
        struct timespec pause = {.tv_nsec = tr->rounds < 20 ? 500000 : 5000000};
        nanosleep(&pause, NULL);
    }
    if (r == -EAGAIN) {
        error_set(e, VMSNAP_EXIT_TIMEOUT, ETIMEDOUT,
                  "process %d: no thread came to rest in a system call (the last one tried: %s)",
                  (int)t->pid, tr->why_not);
        if (tracee_state(t, t->pid) == 'T')
            error_hint(e, "the process is stopped (SIGSTOP): continue it with kill -CONT %d",
                       (int)t->pid);
        return -ETIMEDOUT;
    }
    if (r && e && e->exit_code == 0)
        error_set(e, VMSNAP_EXIT_TARGET, -r, "process %d: attaching failed", (int)t->pid);
    return r;
}

/*
 * Lets the thread go until its next system call stop. A stop of the whole process (SIGSTOP) is
 * passed on and takes hold again at our detach. Any other signal that can't be masked is one that
 * our call itself raised (SIGSYS): -EPERM, and the thread, once parked again, never sees it.
 */
static int run_to_syscall_stop(struct tracer *tr, uint64_t deadline_ns)
{
    int signal = 0;
    for (;;) {
        int status;
        int r = tracee_let_go(PTRACE_SYSCALL, tr->tid, signal);
        if (r == 0)
            r = tracee_wait_stop(tr->tid, deadline_ns, &status);
        if (r || STOP_IS_SYSCALL(status))
            return r;
        signal = 0;
        if (STOP_IS_EVENT(status))
            continue;
        if (status != SIGSTOP)
            return -EPERM;
        signal = SIGSTOP;
    }
}

/* At the entry of the parked rt_sigreturn: makes it our call. */
static int enter_call(struct tracer *tr, long nr, const uint64_t args[6])
{
    struct user_regs_struct regs;
    int r = x86_get_regs(tr->tid, &regs);
    if (r)
        return r;
    if (regs.orig_rax != SYS_rt_sigreturn)
        return -EPROTO;
    x86_set_call(&regs, &tr->frame, nr, args);
    r = x86_set_regs(tr->tid, &regs);
    TESTHOOK_POINT("inject-in-syscall");
    return r;
}

int tracer_call(struct tracer *tr, long nr, const uint64_t args[6], int64_t *result)
{
    assert(tr->parked);
    if (tr->in_call)
        return -ETIMEDOUT;
    uint64_t deadline_ns = clock_monotonic_ns() + tr->call_timeout_ns;
    struct user_regs_struct regs = {0};
    tr->in_call = true;
    int r = run_to_syscall_stop(tr, deadline_ns);
    if (r == 0)
        r = enter_call(tr, nr, args);
    if (r == 0)
        r = run_to_syscall_stop(tr, deadline_ns);
    TESTHOOK_POINT("inject-after-syscall");
    if (r && r != -EPERM)
        return r;
    int got = x86_get_regs(tr->tid, &regs);
    *result = (int64_t)regs.rax;
    x86_park(&regs, &tr->code, &tr->frame);
    if (got == 0)
        got = x86_set_regs(tr->tid, &regs);
    tr->in_call = got != 0;
    return r ? r : got;
}

/* Steps 8 to 10. */
static int put_back(struct tracer *tr, uint64_t deadline_ns)
{
    int r = 0;
    if (ptrace(PTRACE_INTERRUPT, tr->tid, NULL, NULL) != 0)
        r = -errno;
    if (r == 0)
        r = tracee_let_go(PTRACE_CONT, tr->tid, 0);
    if (r == 0)
        r = tracee_wait_interrupted(tr->tid, deadline_ns);
    TESTHOOK_POINT("inject-before-detach");
    if (r == 0)
        r = x86_set_sigmask(tr->tid, tr->saved.sigmask);
    TESTHOOK_POINT("inject-mask-back");
    if (r == 0)
        r = x86_set_regs(tr->tid, &tr->saved.regs);
    TESTHOOK_POINT("inject-registers-back");
    if (r == 0)
        r = tracee_let_go(PTRACE_DETACH, tr->tid, 0);
    return r;
}

int tracer_detach(struct tracer *tr, uint64_t deadline_ns)
{
    int r = 0;
    if (tr->tid && tr->parked)
        r = tr->in_call ? -ETIMEDOUT : put_back(tr, deadline_ns);
    tr->tid = 0;
    tr->parked = false;
    x86_state_free(&tr->saved);
    return r;
}
