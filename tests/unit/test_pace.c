/* A limit on bytes per second, with a clock of the test's own. */
#include <criterion/criterion.h>

#include "common/pace.h"

#define SECOND 1000000000ull

/* Bytes that go through in `ns`, in pieces, by who comes back as soon as it may. */
static uint64_t go_through(struct pace *p, uint64_t from, uint64_t ns, uint64_t piece)
{
    uint64_t now = from, bytes = 0;
    for (;;) {
        now += pace_wait_ns(p, now);
        if (now >= from + ns)
            return bytes;
        pace_charge(p, now, piece);
        bytes += piece;
    }
}

Test(pace, no_limit_never_waits)
{
    struct pace p = {0};
    pace_charge(&p, 5, UINT64_MAX);
    cr_assert_eq(pace_wait_ns(&p, 5), 0);
}

Test(pace, the_limit_is_kept_and_used)
{
    struct pace p = {.bytes_per_s = 10 << 20};
    uint64_t bytes = go_through(&p, 77 * SECOND, 3 * SECOND, 65536);
    cr_assert_leq(bytes, (30u << 20) + (10 << 20) / 50 + 65536);
    cr_assert_geq(bytes, 30u << 20);
}

Test(pace, a_pause_is_not_made_up_for)
{
    struct pace p = {.bytes_per_s = 10 << 20};
    go_through(&p, SECOND, SECOND, 65536);
    uint64_t bytes = go_through(&p, 100 * SECOND, SECOND / 10, 65536);
    cr_assert_leq(bytes, (10u << 20) / 10 + (10 << 20) / 50 + 65536);
}

Test(pace, a_piece_larger_than_a_second_waits_for_its_time)
{
    struct pace p = {.bytes_per_s = 64 << 10};
    pace_charge(&p, 50 * SECOND, 2 << 20);
    uint64_t wait = pace_wait_ns(&p, 50 * SECOND);
    cr_assert(wait > 31 * SECOND && wait <= 32 * SECOND, "%llu ns", (unsigned long long)wait);
}
