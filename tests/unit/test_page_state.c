/* States of clusters and marks of discarded pages. */
#include <criterion/criterion.h>
#include <string.h>

#include "restore/memory/page_state.h"

static struct page_state s;
static unsigned char bytes[8];

static void setup(void)
{
    memset(bytes, 0, sizeof(bytes));
    page_state_map(&s, bytes, sizeof(bytes));
}

TestSuite(page_state, .init = setup);

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
            setup();
            page_state_discard(&s, first, n);
            for (uint64_t page = 0; page < 32; page++) {
                bool marked = page_state_discarded(&s, page / 4) >> (page % 4) & 1;
                cr_assert_eq(marked, page >= first && page < first + n);
            }
        }
    }
}

Test(page_state, a_successor_tries_damaged_clusters_again)
{
    page_state_set(&s, 1, CLUSTER_DAMAGED);
    page_state_discard(&s, 1 * 4, 2);
    page_state_set(&s, 2, CLUSTER_DONE);
    page_state_set(&s, 4, CLUSTER_GONE);
    struct page_state successor;
    page_state_map(&successor, bytes, sizeof(bytes));
    page_state_forgive(&successor);
    cr_assert_eq(page_state_get(&successor, 1), CLUSTER_PENDING);
    cr_assert_eq(page_state_discarded(&successor, 1), 3);
    cr_assert_eq(page_state_get(&successor, 2), CLUSTER_DONE);
    cr_assert_eq(page_state_get(&successor, 4), CLUSTER_GONE);
}

Test(page_state, only_a_pending_cluster_of_which_nothing_is_discarded_is_claimed)
{
    cr_assert(page_state_claim(&s, 2));
    cr_assert_eq(page_state_get(&s, 2), CLUSTER_FILLING);
    cr_assert(!page_state_claim(&s, 2));
    page_state_discard(&s, 3 * 4 + 2, 1);
    cr_assert(!page_state_claim(&s, 3));
    page_state_set(&s, 4, CLUSTER_DONE);
    cr_assert(!page_state_claim(&s, 4));
    cr_assert_eq(page_state_get(&s, 4), CLUSTER_DONE);
}

Test(page_state, a_claim_is_given_back_only_by_who_knows_what_was_discarded)
{
    cr_assert(page_state_claim(&s, 2));
    page_state_discard(&s, 2 * 4 + 1, 2);
    cr_assert(!page_state_unclaim(&s, 2, 0));
    cr_assert_eq(page_state_get(&s, 2), CLUSTER_FILLING);
    cr_assert(page_state_unclaim(&s, 2, 6));
    cr_assert_eq(page_state_get(&s, 2), CLUSTER_PENDING);
    cr_assert_eq(page_state_discarded(&s, 2), 6);
}
