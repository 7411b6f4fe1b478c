/*
 * Injection into a process that is blocked in each kind of system call: the call goes on with the
 * right result, every register, the signal mask and the alternate stack are as they were, and
 * nothing is left in the process.
 */
#include <stdlib.h>

#include "inject_runs.h"
#include "ktest.h"

/* What "every register" is on this CPU. */
static int say_registers(const void *arg)
{
    (void)arg;
    struct blocked *b = blocked_start(&blocking_kinds[0]);
    KTEST_CHECK(b, "can't start");
    printf("    checked over every call: general registers, red zone, %s\n", b->components);
    return KTEST_PASS;
}

int main(int argc, char **argv)
{
    struct ktest_case *cases = calloc(n_blocking_kinds + 1, sizeof(*cases));
    if (!cases)
        return KTEST_FAIL;
    for (unsigned i = 0; i < n_blocking_kinds; i++)
        cases[i] =
            (struct ktest_case){blocking_kinds[i].name, inject_run_calls, &blocking_kinds[i]};
    cases[n_blocking_kinds] = (struct ktest_case){"registers", say_registers, NULL};
    int result = ktest_main(argc, argv, cases, n_blocking_kinds + 1);
    free(cases);
    return result;
}
