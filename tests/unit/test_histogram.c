#include <criterion/criterion.h>
#include <string.h>

#include "common/histogram.h"

Test(histogram, empty_says_zero)
{
    static struct histogram h;
    cr_assert_eq(histogram_quantile(&h, 0.5), 0);
    cr_assert_eq(histogram_quantile(&h, 1.0), 0);
}

static void one_value_is_within_3_percent(uint64_t ns)
{
    static struct histogram h;
    h = (struct histogram){0};
    histogram_add(&h, ns);
    histogram_add(&h, UINT64_MAX); /* so that the maximum does not bound the answer */
    uint64_t got = histogram_quantile(&h, 0.25);
    uint64_t off = got > ns ? got - ns : ns - got;
    cr_assert_leq(off, ns / 33, "%llu came out as %llu", (unsigned long long)ns,
                  (unsigned long long)got);
}

Test(histogram, every_magnitude_is_within_3_percent)
{
    for (unsigned shift = 0; shift < 64; shift++)
        for (uint64_t part = 0; part < 64; part++)
            one_value_is_within_3_percent((1ull << shift) + ((1ull << shift) * part >> 6));
    one_value_is_within_3_percent(0);
    one_value_is_within_3_percent(UINT64_MAX);
}

Test(histogram, quantiles_of_a_ramp)
{
    static struct histogram h;
    for (uint64_t i = 1; i <= 10000; i++)
        histogram_add(&h, i * 1000);
    cr_assert_eq(h.count, 10000);
    cr_assert_eq(h.max_ns, 10000000);
    cr_assert_float_eq((double)histogram_quantile(&h, 0.5), 5e6, 5e6 * 0.03);
    cr_assert_float_eq((double)histogram_quantile(&h, 0.99), 9.9e6, 9.9e6 * 0.03);
    cr_assert_eq(histogram_quantile(&h, 1.0), 10000000);
}

Test(histogram, never_says_more_than_the_maximum)
{
    static struct histogram h;
    histogram_add(&h, 1000001);
    cr_assert_eq(histogram_quantile(&h, 0.5) <= 1000001, 1);
    cr_assert_eq(histogram_quantile(&h, 0.99) <= 1000001, 1);
}

Test(histogram, two_together_are_as_if_all_had_been_added_to_one)
{
    static struct histogram one, two, all;
    for (uint64_t ns = 1; ns <= 1000; ns++) {
        histogram_add(ns % 3 ? &one : &two, ns * 100);
        histogram_add(&all, ns * 100);
    }
    histogram_merge(&one, &two);
    cr_assert_eq(memcmp(&one, &all, sizeof(one)), 0);
}
