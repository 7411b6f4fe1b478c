/*
 * tracer.h - the ptrace side of injection: picks a thread, stops it, runs calls in it, puts
 * it back. All calls from one thread of ours (ptrace knows its tracer by thread), which must end
 * soon after: its end releases whatever could not be released before.
 * Private to common/inject/.
 */
#ifndef VMSNAP_COMMON_INJECT_TRACER_H
#define VMSNAP_COMMON_INJECT_TRACER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"
#include "common/inject/x86.h"
#include "common/target/target.h"

#define TRACER_SLOW_MAX 16

struct tracer {
    const struct target *t;
    uint64_t call_timeout_ns; /* for each injected call */
    struct x86_code code;
    struct x86_state saved;
    struct x86_frame frame;
    pid_t tid;                   /* the thread that is stopped for us; 0: none */
    bool parked;                 /* it runs through the frame when let go */
    bool in_call;                /* an injected call was let go and has not come back */
    pid_t slow[TRACER_SLOW_MAX]; /* seized, but not stopped yet */
    unsigned n_slow;
    unsigned rounds;
    const char *why_not; /* why the last thread was no good */
};

/* A stop as waitid() reports it: the low byte is the signal, above it the ptrace event. */
#define STOP_IS_EVENT(status) ((status) >> 8 == PTRACE_EVENT_STOP)
#define STOP_IS_SYSCALL(status) ((status) == (SIGTRAP | 0x80))

/*
 * Waits until the thread is in a ptrace stop; *status says which. Polls, since no descriptor tells
 * of ptrace stops and a signal handler is not a library's to install: a stop takes 10 to 100
 * microseconds. -ESRCH: the thread has ended; -ETIMEDOUT.
 */
int tracee_wait_stop(pid_t tid, uint64_t deadline_ns, int *status);

/* Lets the thread go on (PTRACE_CONT, SYSCALL, DETACH); `signal`: delivered to it. */
int tracee_let_go(int request, pid_t tid, int signal);

/* Waits for the stop in signal delivery that PTRACE_INTERRUPT asks for. Signals that are reported
 * on the way are passed on. */
int tracee_wait_interrupted(pid_t tid, uint64_t deadline_ns);

/* A number of /proc/PID/task/TID/status; 0 when there is none. */
uint64_t tracee_number(const struct target *t, pid_t tid, const char *key, int base);

/* Its state letter as in /proc/PID/stat; '\0' when it is gone. */
char tracee_state(const struct target *t, pid_t tid);

/*
 * Seizes and stops a thread. -EAGAIN: not now. One that does not stop within its slot stays
 * seized (ptrace can only detach from a stopped thread) and is noted; it is looked at again in the
 * next round, and the end of our thread releases it in any case.
 */
int tracer_stop_thread(struct tracer *tr, pid_t tid, uint64_t deadline_ns, struct error *e);

/* Stops and prepares a thread. deadline_ns: clock_monotonic_ns(). */
int tracer_attach(struct tracer *tr, const struct target *t, uint64_t deadline_ns, struct error *e);

/* Runs a call. -ESRCH: the thread or process has ended; -ETIMEDOUT: it did not come back. */
int tracer_call(struct tracer *tr, long nr, const uint64_t args[6], int64_t *result);

/* Puts the thread back. -ETIMEDOUT: it goes back by itself, through its frame, when it runs. */
int tracer_detach(struct tracer *tr, uint64_t deadline_ns);

/* Threads to try, the best first, in *tids (malloc()ed). Says what threads are doing from
 * /proc/PID/task/TID/{stat,syscall}; leaves out those that can't stop now. */
int tracer_candidates(const struct target *t, pid_t **tids, size_t *count);

#endif
