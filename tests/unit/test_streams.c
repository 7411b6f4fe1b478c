/* How far to go ahead of a writer. */
#include <criterion/criterion.h>

#include "common/streams.h"

/* What a fault at `cluster` is answered with, all of it. */
static uint32_t extent(struct streams *t, uint64_t cluster)
{
    struct stream *s = streams_find(t, cluster);
    s->next = cluster + s->ahead;
    return s->ahead;
}

Test(streams, a_writer_in_sequence_is_spared_ever_more_faults)
{
    struct streams t = {.first = 1, .most = 64};
    uint64_t at = 1000, faults = 0;
    while (at < 1000 + 64 * 64) {
        at += extent(&t, at);
        faults++;
    }
    cr_assert_leq(faults, 72);
}

Test(streams, it_doubles_up_to_the_most)
{
    struct streams t = {.first = 4, .most = 24};
    static const uint32_t expected[] = {4, 8, 16, 24, 24};
    uint64_t at = 0;
    for (unsigned i = 0; i < 5; i++) {
        uint32_t got = extent(&t, at);
        cr_assert_eq(got, expected[i], "fault %u: %u", i, got);
        at += got;
    }
}

Test(streams, several_in_sequence_do_not_disturb_each_other)
{
    struct streams t = {.first = 1, .most = 64};
    uint64_t at[STREAMS_MAX];
    for (unsigned i = 0; i < STREAMS_MAX; i++)
        at[i] = 100000 * i;
    uint32_t last = 0;
    for (int round = 0; round < 10; round++)
        for (unsigned i = 0; i < STREAMS_MAX; i++)
            at[i] += last = extent(&t, at[i]);
    cr_assert_eq(last, 64);
}

Test(streams, one_that_goes_anywhere_is_given_hardly_more_than_it_writes)
{
    struct streams t = {.first = 1, .most = 64};
    uint64_t x = 88172645463325252ull, given = 0;
    for (int i = 0; i < 100000; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        given += extent(&t, x % 65536);
    }
    cr_assert_lt(given, 101000);
}

Test(streams, as_close_behind_as_a_first_step_is_in_sequence_and_no_further)
{
    struct streams t = {.first = 4, .most = 128};
    extent(&t, 100);
    cr_assert_eq(extent(&t, 107), 8, "three behind where it was expected");
    cr_assert_eq(extent(&t, 119), 4, "four behind");
    cr_assert_eq(extent(&t, 114), 4, "one before");
}

Test(streams, one_within_what_was_done_before_is_in_sequence_if_so_wanted)
{
    struct streams t = {.first = 4, .most = 128, .behind = 4};
    extent(&t, 100);
    cr_assert_eq(extent(&t, 100), 8, "four before where it was expected");
    cr_assert_eq(extent(&t, 103), 4, "five before");
    cr_assert_eq(extent(&t, 115), 4, "seven behind");
    cr_assert_eq(extent(&t, 121), 8, "two behind");
}

Test(streams, where_not_all_was_done_it_is_expected_at_the_end_of_what_was)
{
    struct streams t = {.first = 1, .most = 64};
    extent(&t, 10);
    struct stream *s = streams_find(&t, 11);
    cr_assert_eq(s->ahead, 2);
    s->next = 12; /* one of two */
    cr_assert_eq(extent(&t, 12), 4);
}

Test(streams, the_first_cluster_is_no_sequence)
{
    struct streams t = {.first = 4, .most = 128};
    cr_assert_eq(streams_find(&t, 0)->ahead, 4);
}

Test(streams, what_was_asked_for_ahead_is_covered_and_nothing_else)
{
    struct streams t = {.first = 4, .most = 128};
    extent(&t, 100); /* a new one: to 104, which nobody asked for */
    cr_assert_not(streams_covers(&t, 101));
    struct stream *s = streams_find(&t, 104);
    s->next = 104 + s->ahead;
    cr_assert(streams_covers(&t, 104));
    cr_assert(streams_covers(&t, 111));
    cr_assert_not(streams_covers(&t, 112));
    cr_assert_not(streams_covers(&t, 103));
}
