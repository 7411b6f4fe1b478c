/*
 * inject_tracer.h - the ptrace side of injection: picks a thread, stops it, runs calls in it, puts
 * it back. All calls from one thread of ours (ptrace knows its tracer by thread), which must end
 * soon after: its end releases whatever could not be released before.
 * Private to common/inject*.c.
 */
#ifndef VMSNAP_COMMON_INJECT_TRACER_H
#define VMSNAP_COMMON_INJECT_TRACER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"
#include "common/inject_x86.h"
#include "common/target.h"

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
