/*
 * Snapshots of a process that writes all its memory all the time, in every kind of memory, holes
 * included, with the smallest buffers there are: every page of every image is what it was at the
 * instant, and the process finds its own memory right. As many snapshots as it is told, or 6.
 */
#include <stdio.h>
#include <stdlib.h>

#include "tests/engine/stepping_test.h"

#define ROUNDS 6

static int one_round(struct stepping_test *t, int round)
{
    struct snapshot_options options = stepping_options(t->image);
    options.live = round % 2 ? LIVE_ALWAYS : LIVE_AUTO;
    json_t *summary;
    if (stepping_test_snapshot(t, &options, &summary))
        return 1;
    long wrong = stepping_judge(t->image);
    json_int_t faults = stepping_number(summary, "write_faults");
    printf("round %d: %ld wrong pages, %lld faults, throttled %lld us, %lld live passes, %lld live "
           "faults, %lld armed in the pause\n",
           round, wrong, (long long)faults,
           (long long)stepping_number(summary, "throttled_ns") / 1000,
           (long long)stepping_number(summary, "live_passes"),
           (long long)stepping_number(summary, "live_faults"),
           (long long)stepping_number(summary, "armed_in_pause"));
    json_decref(summary);
    return wrong != 0 || faults == 0;
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : ROUNDS;
    struct stepping_test t;
    int unable = stepping_test_begin(&t);
    if (unable)
        return unable;
    static const enum stepping_kind kinds[] = {STEPPING_ANON, STEPPING_ANON_HUGE, STEPPING_MEMFD,
                                               STEPPING_PRIVATE_FILE, STEPPING_HUGETLB};
    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
        stepping_test_add(&t, kinds[i], kinds[i] == STEPPING_HUGETLB ? 1024 + 3 : 4096 + i * 3);
    if (!stepping_test_start(&t))
        return 1;
    printf("%u kinds of memory%s\n", t.source.base.n_regions,
           t.source.base.n_regions < t.board->n_blocks ? " (no huge pages in hugetlbfs here)" : "");
    int failed = 0;
    for (int round = 0; round < rounds && !failed; round++)
        failed = one_round(&t, round);
    failed |= !stepping_test_goes_on(&t) || stepping_test_found_wrong(&t);
    stepping_test_end(&t);
    return failed;
}
