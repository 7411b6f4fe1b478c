/* The page buffers: the reserve that only faults may take, waiting, and giving up. */
#include <criterion/criterion.h>

#include "common/clock.h"
#include "common/pool.h"
#include "common/ring.h"

Test(pool, neighbours_leave_a_part_of_the_reserve)
{
    struct pool p;
    cr_assert_eq(pool_init(&p, 16, 4096, 8), 0);
    uint32_t taken[16];
    cr_assert_eq(pool_try_take_many(&p, POOL_SWEEP, taken, 16), 8);
    cr_assert_eq(pool_try_take_many(&p, POOL_AROUND, taken, 16), 6, "the sweep has had its share");
    cr_assert_eq(pool_try_take(&p, POOL_AROUND), POOL_NONE);
    cr_assert_eq(pool_try_take_many(&p, POOL_FAULT, taken, 16), 2);
    pool_free(&p);
}

Test(pool, is_short_when_half_of_the_reserve_is_gone)
{
    struct pool p;
    uint32_t taken[6];
    cr_assert_eq(pool_init(&p, 8, 4096, 4), 0, "init");
    cr_assert(!pool_is_short(&p), "all are there");
    cr_assert_eq(pool_try_take_many(&p, POOL_FAULT, taken, 6), 6, "six of eight");
    cr_assert(!pool_is_short(&p), "half of the reserve is left");
    uint32_t one = pool_try_take(&p, POOL_FAULT);
    cr_assert(pool_is_short(&p), "less is");
    pool_put(&p, one);
    cr_assert(!pool_is_short(&p), "one has come back");
    pool_free(&p);
}

Test(pool, sweep_leaves_the_reserve_to_faults)
{
    struct pool p;
    cr_assert_eq(pool_init(&p, 8, 4096, 2), 0);
    for (int i = 0; i < 6; i++)
        cr_assert_neq(pool_try_take(&p, POOL_SWEEP), POOL_NONE);
    cr_assert_eq(pool_try_take(&p, POOL_SWEEP), POOL_NONE);
    uint32_t a = pool_try_take(&p, POOL_FAULT);
    cr_assert_neq(a, POOL_NONE);
    cr_assert_neq(pool_try_take(&p, POOL_FAULT), POOL_NONE);
    cr_assert_eq(pool_try_take(&p, POOL_FAULT), POOL_NONE);
    cr_assert_eq(pool_peak_bytes(&p), 8 * 4096);
    pool_put(&p, a);
    cr_assert_eq(pool_try_take(&p, POOL_SWEEP), POOL_NONE);
    cr_assert_eq(pool_try_take(&p, POOL_FAULT), a);
    pool_free(&p);
}

Test(pool, buffers_do_not_overlap)
{
    struct pool p;
    cr_assert_eq(pool_init(&p, 16, 16384, 0), 0);
    for (uint32_t i = 0; i < 16; i++) {
        uint32_t b = pool_take(&p, POOL_SWEEP);
        memset(pool_memory(&p, b), (int)b + 1, 16384);
    }
    for (uint32_t b = 0; b < 16; b++) {
        unsigned char *m = pool_memory(&p, b);
        cr_assert_eq(m[0], b + 1);
        cr_assert_eq(m[16383], b + 1);
    }
    pool_free(&p);
}

Test(pool, cancel_ends_waiting)
{
    struct pool p;
    cr_assert_eq(pool_init(&p, 1, 4096, 0), 0);
    cr_assert_neq(pool_take(&p, POOL_FAULT), POOL_NONE);
    pool_cancel(&p);
    cr_assert_eq(pool_take(&p, POOL_FAULT), POOL_NONE);
    pool_free(&p);
}

Test(pool, waiting_can_be_for_so_long)
{
    struct pool p;
    cr_assert_eq(pool_init(&p, 2, 4096, 1), 0);
    uint32_t b = pool_take_within(&p, POOL_SWEEP, 1000);
    cr_assert_neq(b, POOL_NONE);
    uint64_t from = clock_monotonic_ns();
    cr_assert_eq(pool_take_within(&p, POOL_SWEEP, 30), POOL_NONE, "the other one is the reserve");
    cr_assert_geq(clock_monotonic_ns() - from, 29000000u);
    pool_put(&p, b);
    cr_assert_eq(pool_take_within(&p, POOL_SWEEP, 1000), b);
    pool_free(&p);
}

Test(ring, keeps_order_and_says_full_and_empty)
{
    struct ring r;
    uint32_t v;
    cr_assert_eq(ring_init(&r, 4), 0);
    for (int round = 0; round < 100; round++) {
        cr_assert_not(ring_pop(&r, &v));
        for (uint32_t i = 0; i < 4; i++)
            cr_assert(ring_push(&r, i));
        cr_assert_not(ring_push(&r, 9));
        for (uint32_t i = 0; i < 4; i++) {
            cr_assert(ring_pop(&r, &v));
            cr_assert_eq(v, i);
        }
    }
    ring_free(&r);
}
