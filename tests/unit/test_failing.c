/* Units whose reading failed: which is tried again, and when. */
#include <criterion/criterion.h>
#include <errno.h>

#include "restore/decode/failing.h"

#define MS 1000000ull

static struct job failed(uint64_t cluster, unsigned tries, int status)
{
    return (struct job){
        .cluster = cluster, .n_clusters = 1, .tries = tries, .n_errors = tries, .status = status};
}

static void add(struct failing *f, uint64_t cluster, unsigned tries, uint64_t now_ns)
{
    struct job job = failed(cluster, tries, -EIO);
    cr_assert(failing_add(f, &job, now_ns));
}

Test(failing, comes_again_later_and_later)
{
    static struct failing f;
    static const uint64_t wanted_ms[] = {0, 100, 200, 400, 800, 1600, 2000, 2000};
    struct job job;
    for (unsigned tries = 1; tries < 8; tries++) {
        add(&f, 7, tries, 0);
        cr_assert(!failing_take_due(&f, wanted_ms[tries] * MS - 1, &job), "try %u", tries);
        cr_assert(failing_take_due(&f, wanted_ms[tries] * MS, &job), "try %u", tries);
        cr_assert_eq(job.tries, tries);
        cr_assert_eq(job.n_errors, tries);
        cr_assert_eq(job.origin, JOB_DEMAND);
        cr_assert_eq(job.status, 0);
    }
    cr_assert_eq(f.n, 0);
}

Test(failing, what_hangs_is_looked_at_often)
{
    static struct failing f;
    struct job job = failed(7, 1000000, -EINPROGRESS);
    cr_assert(failing_add(&f, &job, 0));
    cr_assert(!failing_take_due(&f, 399 * MS, &job));
    cr_assert(failing_take_due(&f, 400 * MS, &job));
}

Test(failing, the_one_that_is_due_for_longest_comes_first)
{
    static struct failing f;
    struct job job;
    add(&f, 1, 3, 0);
    add(&f, 2, 1, 0);
    add(&f, 3, 2, 0);
    static const uint64_t order[] = {2, 3, 1};
    for (unsigned i = 0; i < 3; i++) {
        cr_assert(failing_has(&f, order[i]));
        cr_assert(failing_take_due(&f, 1000 * MS, &job));
        cr_assert_eq(job.cluster, order[i]);
        cr_assert(!failing_has(&f, order[i]));
    }
    cr_assert(!failing_take_due(&f, UINT64_MAX, &job));
}

Test(failing, is_bounded)
{
    static struct failing f;
    for (unsigned i = 0; i < FAILING_MAX; i++)
        add(&f, i, 1, 0);
    struct job job = failed(FAILING_MAX, 1, -EIO);
    cr_assert(!failing_add(&f, &job, 0));
    cr_assert(!failing_has(&f, FAILING_MAX));
    cr_assert(failing_take_due(&f, 100 * MS, &job));
    job = failed(FAILING_MAX, 1, -EIO);
    cr_assert(failing_add(&f, &job, 0));
}
