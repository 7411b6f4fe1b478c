/*
 * Memory under several userfaultfds, each with a fault thread of its own: every page is what it was
 * at the instant, whichever shard it lies in; memory that is discarded in any one of them fails the
 * snapshot; and when the worker is killed in mid-snapshot, the whole process goes on.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/engine/stepping_test.h"

#define HUGE_PAGE_BYTES (2u << 20)
#define BIG_PAGES 8192u

/* Small blocks and hugetlbfs lie in one shard, the others in all: their beginnings are aligned. */
static bool start(struct stepping_test *t)
{
    if (!stepping_test_start(t))
        return false;
    for (uint32_t i = 0; i < t->board->n_blocks; i++)
        if (t->board->blocks[i].hva % HUGE_PAGE_BYTES) {
            printf("block %u begins within a huge page: it would not be cut\n", i);
            return false;
        }
    return true;
}

static int one_snapshot(struct stepping_test *t, unsigned n_shards, enum snapshot_live live)
{
    struct snapshot_options options = stepping_options(t->image);
    options.n_shards = n_shards;
    options.live = live;
    json_t *summary;
    if (stepping_test_snapshot(t, &options, &summary))
        return 1;
    long wrong = stepping_judge(t->image);
    json_int_t faults = stepping_number(summary, "write_faults");
    printf("%u shards: %ld wrong pages, %lld faults, %lld live faults\n", n_shards, wrong,
           (long long)faults, (long long)stepping_number(summary, "live_faults"));
    json_decref(summary);
    return wrong != 0 || faults == 0;
}

static int content(void)
{
    struct stepping_test t;
    int failed = stepping_test_begin(&t);
    if (failed)
        return failed;
    static const enum stepping_kind kinds[] = {STEPPING_ANON, STEPPING_ANON_HUGE, STEPPING_MEMFD,
                                               STEPPING_PRIVATE_FILE, STEPPING_HUGETLB};
    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
        stepping_test_add(&t, kinds[i], kinds[i] == STEPPING_HUGETLB ? 1024 + 3 : 4096 + i * 3);
    stepping_test_add(&t, STEPPING_ANON, 64);
    if (!start(&t))
        return 1;
    static const unsigned n_shards[] = {2, 3, 8};
    for (size_t i = 0; i < sizeof(n_shards) / sizeof(*n_shards) && !failed; i++)
        failed = one_snapshot(&t, n_shards[i], i % 2 ? LIVE_NEVER : LIVE_ALWAYS);
    failed |= !stepping_test_goes_on(&t) || stepping_test_found_wrong(&t);
    stepping_test_end(&t);
    return failed;
}

/* In the worker, right after the instant. */
static void discard(struct stepping_source *s)
{
    atomic_store(&s->board->discard, true);
    while (!atomic_load(&s->board->discarded))
        usleep(100);
    usleep(2000);
}

/* From a page of the one block on, which the second of two shards has from its half on. */
static int discard_from(uint64_t page)
{
    struct stepping_test t;
    int failed = stepping_test_begin(&t);
    if (failed)
        return failed;
    stepping_test_add(&t, STEPPING_ANON, BIG_PAGES);
    atomic_store(&t.board->discard_from, page);
    if (!start(&t))
        return 1;
    t.source.resumed = discard;
    struct snapshot_options options = stepping_options(t.image);
    options.n_shards = 2;
    json_t *summary;
    int ret = stepping_test_snapshot(&t, &options, &summary);
    unsigned long long offset = 0;
    const char *at = strstr(t.error.message, "offset 0x");
    failed = ret == 0 || t.error.exit_code != VMSNAP_EXIT_FAILED ||
             !strstr(t.error.message, "discarded") || !at ||
             sscanf(at, "offset 0x%llx", &offset) != 1 || offset / 4096 < page ||
             offset / 4096 >= BIG_PAGES || t.error.guest != GUEST_RUNNING ||
             access(t.image, F_OK) == 0 || !stepping_test_goes_on(&t);
    json_decref(summary);
    stepping_test_end(&t);
    return failed;
}

/* In the worker, right after the instant: dead in 10 ms, while it saves. (No child does that: it
 * would hold the userfaultfds.) */
static void die_soon(struct stepping_source *s)
{
    (void)s;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
    struct itimerspec when = {.it_value.tv_nsec = 10000000};
    timer_t timer;
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &when, NULL))
        _exit(1);
}

static int killed(void)
{
    struct stepping_test t;
    int failed = stepping_test_begin(&t);
    if (failed)
        return failed;
    atomic_store(&t.board->noise, true);
    stepping_test_add(&t, STEPPING_ANON, BIG_PAGES);
    stepping_test_add(&t, STEPPING_MEMFD, 4096);
    if (!start(&t))
        return 1;
    t.source.resumed = die_soon;
    struct snapshot_options options = stepping_options(t.image);
    options.n_shards = 2;
    json_t *summary;
    failed = stepping_test_snapshot(&t, &options, &summary) == 0 || access(t.image, F_OK) == 0;
    json_decref(summary);
    failed |= !stepping_test_goes_on(&t);
    t.source.resumed = NULL; /* and nothing of the dead one is in the way */
    failed |= one_snapshot(&t, 2, LIVE_AUTO) || stepping_test_found_wrong(&t);
    stepping_test_end(&t);
    return failed;
}

int main(void)
{
    int result = content();
    if (!result)
        result = discard_from(0) || discard_from(BIG_PAGES / 2) || killed();
    return result;
}
