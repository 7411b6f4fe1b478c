/* How much is unprotected at a write before the instant. */
#include <criterion/criterion.h>

#include "snapshot/tracker.h"

Test(tracker, a_writer_in_sequence_is_spared_ever_more_faults)
{
    struct tracker t = {0};
    uint64_t at = 1000, faults = 0;
    while (at < 1000 + 64 * TRACKER_MAX_CLUSTERS) {
        at += tracker_extent(&t, at);
        faults++;
    }
    cr_assert_leq(faults, 72);
}

Test(tracker, several_in_sequence_do_not_disturb_each_other)
{
    struct tracker t = {0};
    uint64_t at[TRACKER_STREAMS];
    for (unsigned i = 0; i < TRACKER_STREAMS; i++)
        at[i] = 100000 * i;
    uint32_t last = 0;
    for (int round = 0; round < 10; round++)
        for (unsigned i = 0; i < TRACKER_STREAMS; i++)
            at[i] += last = tracker_extent(&t, at[i]);
    cr_assert_eq(last, TRACKER_MAX_CLUSTERS);
}

Test(tracker, one_that_goes_anywhere_loosens_hardly_more_than_it_writes)
{
    struct tracker t = {0};
    uint64_t x = 88172645463325252ull, loosened = 0;
    for (int i = 0; i < 100000; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        loosened += tracker_extent(&t, x % 65536);
    }
    cr_assert_lt(loosened, 101000);
}

Test(tracker, the_first_cluster_is_no_sequence)
{
    struct tracker t = {0};
    cr_assert_eq(tracker_extent(&t, 0), 1);
}
