/* What is asked for ahead of a guest that goes through memory in order, and of
 * one that does not. */
#include <criterion/criterion.h>

#include "restore/decode/ahead.h"

static struct ahead ahead;
static const struct block block = {.first_cluster = 100, .n_clusters = 1000};

static void start(void)
{
    cr_assert_eq(ahead_init(&ahead), 0);
    ahead_turn_on(&ahead);
}

static void end(void)
{
    ahead_free(&ahead);
}

TestSuite(ahead, .init = start, .fini = end, .timeout = 30);

/* Demands a cluster; returns how many runs are asked for then, *first: the first one's cluster. */
static unsigned demand(uint64_t cluster, uint64_t *first)
{
    uint64_t run;
    unsigned n = 0;
    ahead_note(&ahead, &block, cluster, 1);
    *first = 0;
    while (ahead_take(&ahead, &run)) {
        cr_assert_eq(run % AHEAD_RUN, 0);
        if (n++ == 0)
            *first = run;
    }
    return n;
}

Test(ahead, nothing_at_first_and_twice_as_far_each_time)
{
    uint64_t first, at = 200;
    cr_assert_eq(demand(at, &first), 0);
    unsigned wanted = 2, most = 0;
    at++;
    for (int i = 0; i < 8; i++) {
        unsigned n = demand(at, &first);
        cr_assert_leq(first, at + 1);
        cr_assert_geq(first + AHEAD_RUN, at + 1, "from the next cluster on");
        cr_assert_geq(n, wanted, "step %d: %u runs", i, n);
        most = n > most ? n : most;
        wanted = wanted < 16 ? wanted * 2 : 31;
        at = first + (uint64_t)n * AHEAD_RUN; /* all of it was in when it got there */
        if (at + 140 >= block.first_cluster + block.n_clusters)
            break;
    }
    cr_assert_leq(most, 33, "2 MiB at most");
    cr_assert_geq(most, 31, "and as much in the end");
}

Test(ahead, what_is_on_its_way_is_no_sign_of_another_stream)
{
    uint64_t first;
    demand(200, &first);
    demand(201, &first);
    unsigned n = demand(212, &first);
    cr_assert_gt(n, 0);
    /* The guest is faster than we are: it demands what was asked for. */
    for (uint64_t at = 213; at < 228; at++)
        cr_assert_eq(demand(at, &first), 0, "cluster %llu", (unsigned long long)at);
}

Test(ahead, one_that_goes_anywhere_gets_nothing)
{
    uint64_t first, x = 1;
    unsigned asked = 0;
    for (int i = 0; i < 1000; i++) {
        x = x * 6364136223846793005ull + 1442695040888963407ull;
        asked += demand(100 + 97 * (x >> 33) % 1000 / 5 * 5, &first) > 0;
    }
    cr_assert_lt(asked, 50, "asked for %u times of 1000", asked);
}

Test(ahead, not_beyond_the_block)
{
    uint64_t first, end = block.first_cluster + block.n_clusters;
    demand(end - 3, &first);
    unsigned n = demand(end - 2, &first);
    cr_assert_leq(n, 1);
    cr_assert(n == 0 || first < end);
    cr_assert_eq(demand(end - 1, &first), 0);
}

Test(ahead, nothing_unless_it_is_on_and_nothing_of_huge_pages)
{
    struct ahead off;
    uint64_t run;
    cr_assert_eq(ahead_init(&off), 0);
    for (uint64_t at = 300; at < 320; at++)
        ahead_note(&off, &block, at, 1);
    cr_assert_not(ahead_take(&off, &run));
    ahead_turn_on(&off);
    for (uint64_t at = 300; at < 900; at += 128)
        ahead_note(&off, &block, at, 128);
    cr_assert_not(ahead_take(&off, &run));
    ahead_free(&off);
}

Test(ahead, with_nobody_to_take_it_it_stays_bounded)
{
    for (uint64_t at = 100; at < 1100; at++)
        ahead_note(&ahead, &block, at, 1);
    unsigned n = 0;
    uint64_t run;
    while (ahead_take(&ahead, &run))
        n++;
    cr_assert_leq(n, 256);
}
