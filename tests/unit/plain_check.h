/* plain_check.h - checks for unit tests that are programs of their own (add_plain_test(), one
 * source file each): all are made, and main() returns whether one failed. */
#ifndef VMSNAP_TESTS_PLAIN_CHECK_H
#define VMSNAP_TESTS_PLAIN_CHECK_H

#include <stdio.h>

static unsigned n_checks_failed;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);              \
            n_checks_failed++;                                                                     \
        }                                                                                          \
    } while (0)

/* What main() returns. */
static inline int check_result(void)
{
    printf("%u checks failed\n", n_checks_failed);
    return n_checks_failed != 0;
}

#endif
