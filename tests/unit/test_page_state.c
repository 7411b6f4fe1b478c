/* States of clusters and marks of discarded pages. */
#include <criterion/criterion.h>

#include "restore/page_state.h"

static struct page_state s;

static void setup(void)
{
    cr_assert_eq(page_state_init(&s, 8), 0);
}

static void teardown(void)
{
    page_state_free(&s);
}

TestSuite(page_state, .init = setup, .fini = teardown);

Test(page_state, begins_pending_with_nothing_discarded)
{
    for (uint64_t i = 0; i < 8; i++) {
        cr_assert_eq(page_state_get(&s, i), CLUSTER_PENDING);
        cr_assert_eq(page_state_discarded(&s, i), 0);
    }
}

Test(page_state, state_and_marks_leave_each_other_alone)
{
    page_state_discard(&s, 3 * 4 + 1, 2);
    page_state_set(&s, 3, CLUSTER_DONE);
    cr_assert_eq(page_state_discarded(&s, 3), 6);
    cr_assert_eq(page_state_get(&s, 3), CLUSTER_DONE);
    page_state_discard(&s, 3 * 4, 1);
    cr_assert_eq(page_state_get(&s, 3), CLUSTER_DONE);
    cr_assert_eq(page_state_discarded(&s, 3), 7);
    page_state_set(&s, 3, CLUSTER_DAMAGED);
    cr_assert_eq(page_state_get(&s, 3), CLUSTER_DAMAGED);
    cr_assert_eq(page_state_discarded(&s, 3), 7);
}

Test(page_state, a_range_of_marks_covers_exactly_its_pages)
{
    for (uint64_t first = 0; first < 12; first++) {
        for (uint64_t n = 0; first + n <= 32; n++) {
            teardown();
            setup();
            page_state_discard(&s, first, n);
            for (uint64_t page = 0; page < 32; page++) {
                bool marked = page_state_discarded(&s, page / 4) >> (page % 4) & 1;
                cr_assert_eq(marked, page >= first && page < first + n);
            }
        }
    }
}
