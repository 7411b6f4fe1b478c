/*
 * ktest.h - a small harness for tests that need processes of their own: plain programs whose cases
 * run one after another, each with children that are gone when it ends. Exit code 0: passed, 1:
 * failed, 77: every case was skipped, each with its reason.
 */
#ifndef VMSNAP_TESTS_KTEST_H
#define VMSNAP_TESTS_KTEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#define KTEST_PASS 0
#define KTEST_FAIL 1
#define KTEST_SKIP 77

struct ktest_case {
    const char *name;
    int (*run)(const void *arg);
    const void *arg;
};

/* Runs the cases whose names contain argv[1] (all without it) and prints a line for each. */
int ktest_main(int argc, char **argv, const struct ktest_case *cases, size_t n);

/* Ends the case as failed, with a message. */
#define KTEST_CHECK(condition, ...)                                                                \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            ktest_say(__FILE__, __LINE__, #condition);                                             \
            printf("    " __VA_ARGS__);                                                            \
            printf("\n");                                                                          \
            return KTEST_FAIL;                                                                     \
        }                                                                                          \
    } while (0)

/* Ends the case as skipped, with the reason. */
#define KTEST_SKIP_IF(condition, ...)                                                              \
    do {                                                                                           \
        if (condition) {                                                                           \
            printf("    skip: " __VA_ARGS__);                                                      \
            printf("\n");                                                                          \
            return KTEST_SKIP;                                                                     \
        }                                                                                          \
    } while (0)

void ktest_say(const char *file, int line, const char *condition);

/* Starts a child that runs fn(opaque) and exits with its result; killed at the end of the case and
 * when this process dies. */
pid_t ktest_spawn(int (*fn)(void *opaque), void *opaque);

/* Kills and reaps one child. */
void ktest_end(pid_t pid);

/* A file that is removed at the end of the case, whatever comes of it. */
void ktest_scratch(const char *path);

/* Reaps a child within `timeout_ms`: its status as of waitpid(), or -1 when it still runs. */
int ktest_reap(pid_t pid, int timeout_ms);

/* Shared zeroed memory for a case and its children; lives until the program ends. */
void *ktest_shared(size_t bytes);

/* Waits up to 10 s until the condition holds; evaluates to whether it does. */
#define KTEST_WAIT(condition)                                                                      \
    __extension__({                                                                                \
        bool ktest_ok_ = false;                                                                    \
        for (int ktest_i_ = 0; ktest_i_ < 20000 && !(ktest_ok_ = (condition)); ktest_i_++)         \
            ktest_nap();                                                                           \
        ktest_ok_;                                                                                 \
    })
void ktest_nap(void); /* half a millisecond */

/* True when a child has ended; does not reap it. */
bool ktest_ended(pid_t pid);

/* The number of the system call that a thread is blocked in, -1 when it runs. */
long ktest_blocked_in(pid_t pid, pid_t tid);

/* Counters of /proc/PID/status in KiB ("VmRSS"), 0 when absent. */
uint64_t ktest_status(pid_t pid, const char *key);

#endif
