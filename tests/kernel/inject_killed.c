/*
 * The injecting process is killed at every step of inject/tracer.c, and at random moments, while
 * the target is blocked in each kind of system call: the target lives, its call has the right
 * result, and every register, the signal mask and the alternate stack are as they were.
 */
#include <stdlib.h>
#include <time.h>

#include "inject_runs.h"
#include "ktest.h"

static int report(const void *arg)
{
    (void)arg;
    printf(
        "    %u injectors killed; %u times in the moment in which a stop ends a call with EINTR\n",
        inject_n_killed, inject_n_eintr);
    return KTEST_PASS;
}

int main(int argc, char **argv)
{
#ifndef VMSNAP_TEST_HOOKS
    printf("    skip: built without test hooks\n");
    return KTEST_SKIP;
#endif
    struct ktest_case *cases = calloc(n_blocking_kinds + 1, sizeof(*cases));
    if (!cases)
        return KTEST_FAIL;
    srandom((unsigned)time(NULL));
    for (unsigned i = 0; i < n_blocking_kinds; i++)
        cases[i] =
            (struct ktest_case){blocking_kinds[i].name, inject_run_killed, &blocking_kinds[i]};
    cases[n_blocking_kinds] = (struct ktest_case){"killed in all", report, NULL};
    int result = ktest_main(argc, argv, cases, n_blocking_kinds + 1);
    free(cases);
    return result;
}
