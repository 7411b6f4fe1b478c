/* inject_runs.h - injection into a process that blocks in one kind of system call. */
#ifndef VMSNAP_TESTS_INJECT_RUNS_H
#define VMSNAP_TESTS_INJECT_RUNS_H

#include "blocking.h"

/* Cases (struct ktest_case) whose argument is a struct blocking_kind. */

/* The call goes on with the right result, everything is as it was, nothing is left behind. */
int inject_run_calls(const void *kind);

/* The same when the injecting process is killed, at each step and at random moments. */
int inject_run_killed(const void *kind);

extern unsigned inject_n_killed;
extern unsigned inject_n_eintr; /* times that a call was ended with EINTR, where that may be */

#endif
