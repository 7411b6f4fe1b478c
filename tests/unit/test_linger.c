#include <criterion/criterion.h>

#include "restore/serve/linger.h"

static struct linger on_two_cpus(void)
{
    struct linger l;
    linger_begin(&l);
    linger_end(&l);        /* nobody else wants a CPU */
    l.full_ns = LINGER_NS; /* wherever this runs */
    return l;
}

/* `n` faults that come after the server has gone to sleep. */
static void faults_after_sleep(struct linger *l, unsigned n)
{
    while (n-- > 0) {
        linger_sleeps(l);
        linger_fault(l);
    }
}

Test(linger, goes_on_while_faults_keep_coming)
{
    struct linger l = on_two_cpus();
    for (unsigned i = 0; i < 1000; i++) {
        linger_fault(&l);
        cr_assert_eq(linger_ns(&l), LINGER_NS);
    }
    faults_after_sleep(&l, 1);
    linger_fault(&l);
    faults_after_sleep(&l, 1);
    cr_assert_eq(linger_ns(&l), LINGER_NS, "every other one came while it read on");
}

Test(linger, is_left_out_while_it_finds_nothing)
{
    struct linger l = on_two_cpus();
    unsigned lingered = 0;
    for (unsigned i = 0; i < 10000; i++) {
        lingered += linger_ns(&l) > 0;
        faults_after_sleep(&l, 1);
    }
    cr_assert_lt(lingered, 100);
    cr_assert_gt(lingered, 50, "but tried again");
}

Test(linger, comes_back_when_it_has_found_something)
{
    struct linger l = on_two_cpus();
    faults_after_sleep(&l, 10000);
    while (linger_ns(&l) == 0)
        faults_after_sleep(&l, 1);
    linger_fault(&l);
    faults_after_sleep(&l, 1);
    cr_assert_eq(linger_ns(&l), LINGER_NS, "counted anew");
    faults_after_sleep(&l, 1);
    cr_assert_eq(linger_ns(&l), 0);
    faults_after_sleep(&l, 16);
    cr_assert_eq(linger_ns(&l), LINGER_NS, "not for as long as before");
}

Test(linger, never_on_a_single_cpu)
{
    struct linger l = on_two_cpus();
    l.full_ns = 0;
    linger_fault(&l);
    cr_assert_eq(linger_ns(&l), 0);
}
