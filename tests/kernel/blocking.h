/*
 * blocking.h - processes that block in one kind of system call, over and over, with every register
 * checked each time (checked_syscall.h), and somebody to wake them.
 */
#ifndef VMSNAP_TESTS_BLOCKING_H
#define VMSNAP_TESTS_BLOCKING_H

#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Shared between the process under test and the test. */
struct blocked {
    const struct blocking_kind *kind;
    pid_t pid;
    atomic_int rounds; /* calls that returned as they should */
    atomic_int
        may_eintr;     /* so many results of EINTR are forgiven to a kind that stop_gives_eintr */
    atomic_int eintrs; /* so many were */
    atomic_int broken; /* set with `message` when one did not; the process stops then */
    char message[160];
    uint32_t futex;
    int pipe[2]; /* kinds that wait for a byte */
    int sock[2];
    int epoll, ring, listener;
    struct {
        uint32_t *sq_tail, *cq_head, *cq_tail;
        uint32_t sq_mask, *sq_array;
        void *sqes;
    } uring;
    char components[128]; /* of the FPU, that are checked */
};

struct blocking_kind {
    const char *name;
    long nr;           /* what /proc shows while it blocks */
    bool wakes_itself; /* by a timeout */
    /* Linux ends this call with EINTR when its process is merely stopped and continued: signal(7).
     * Injection makes up for it, unless it is killed between the stop and its first look. */
    bool stop_gives_eintr;
    /* In the process: makes what it needs, once. False: not possible here. */
    bool (*setup)(struct blocked *b);
    /* In the process, before each call. */
    void (*arguments)(struct blocked *b, uint64_t args[6]);
    /* In the test: makes the call return. */
    void (*wake)(struct blocked *b);
    /* In the process, after each call: NULL or what is wrong. */
    const char *(*verify)(struct blocked *b, int64_t result);
    /* In the test: whether the process is in its call; NULL: /proc says so. */
    bool (*is_blocked)(const struct blocked *b);
};

/* In the process: its normal signal mask, and when its last call began (clock.h, monotonic). */
extern sigset_t blocked_mask;
extern uint64_t blocked_since_ns;

extern const struct blocking_kind blocking_kinds[];
extern const unsigned n_blocking_kinds;

/* Starts the process. NULL: not possible here (the caller skips). */
struct blocked *blocked_start(const struct blocking_kind *kind);

/* Waits until it is in its system call again. */
bool blocked_wait(const struct blocked *b);

/* Wakes it and waits until it has checked itself and counted the round. NULL or what is wrong. */
const char *blocked_finish_round(struct blocked *b, int round);

#endif
