/*
 * Many threads fault at a time. Those that the server leaves to the demand threads are answered as
 * rightly as its own, and all of them are answered.
 *
 * `kernel_serve_crowd speed` measures: faults per second of 1 to 16 threads, each cluster touched
 * once, with and without that, in turns.
 */
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/kernel.h"
#include "tests/kernel/ktest.h"
#include "tests/serve/serve_kit.h"

#define NO_CROWD 0xffffffffu
#define ROUNDS 5

struct crowd_run {
    uint64_t ns, faults, p50_ns, p99_ns;
};

/* One restore of which every page is read by one of the threads, without any fill. */
static int run_once(enum kit_work work, enum kit_memory kind, unsigned n_threads, unsigned crowd,
                    struct crowd_run *r)
{
    struct kit_board *board = ktest_shared(sizeof(*board));
    board->n_threads = n_threads;
    board->work = work;
    board->n_blocks = 1;
    board->blocks[0] = (struct kit_block){.kind = kind, .n_pages = 16384};
    struct kit k;
    KTEST_CHECK(kit_open(&k, board, false), "no process or image");
    k.crowd = crowd;
    KTEST_CHECK(kit_serve(&k, false, false), "no server");
    uint64_t began_ns = clock_monotonic_ns();
    KTEST_CHECK(kit_run(&k), "the process hangs");
    r->ns = clock_monotonic_ns() - began_ns;
    KTEST_CHECK(board->wrong == 0, "%llu wrong pages", (unsigned long long)board->wrong);
    struct server_stats s;
    server_get_stats(k.server, &s);
    r->faults = s.demand_faults;
    r->p50_ns = histogram_quantile(&s.faults, 0.5);
    r->p99_ns = histogram_quantile(&s.faults, 0.99);
    kit_close(&k);
    return KTEST_PASS;
}

static int all_right(const void *arg)
{
    const enum kit_memory *kind = arg;
    struct crowd_run r;
    for (unsigned crowd = 1; crowd <= 4; crowd += 3) {
        int rc = run_once(KIT_READ, *kind, 8, crowd, &r);
        if (rc)
            return rc;
        printf("    crowd %u: %llu faults\n", crowd, (unsigned long long)r.faults);
        KTEST_CHECK(r.faults >= 16384 / IMAGE_CLUSTER_PAGES, "%llu faults",
                    (unsigned long long)r.faults);
    }
    return KTEST_PASS;
}

static int speed(const void *arg)
{
    (void)arg;
    static const unsigned crowds[] = {NO_CROWD, 2, 4, 8};
    for (unsigned n = 1; n <= 16; n *= 2)
        for (int round = 0; round < ROUNDS; round++)
            for (size_t i = 0; i < sizeof(crowds) / sizeof(crowds[0]); i++) {
                struct crowd_run r;
                int rc = run_once(KIT_TOUCH_ALL, KIT_ANON, n, crowds[i], &r);
                if (rc)
                    return rc;
                printf("    %2u threads, crowd %d: %.0f faults/s, p50 %.0f us, p99 %.0f us\n", n,
                       (int)crowds[i], (double)r.faults * 1e9 / (double)r.ns,
                       (double)r.p50_ns / 1e3, (double)r.p99_ns / 1e3);
                fflush(stdout);
            }
    return KTEST_PASS;
}

int main(int argc, char **argv)
{
    static const enum kit_memory anon = KIT_ANON, shared = KIT_MEMFD;
    static const struct ktest_case cases[] = {
        {"anon", all_right, &anon},
        {"shared", all_right, &shared},
        {"speed", speed, NULL},
    };
    bool measures = argc > 1 && strcmp(argv[1], "speed") == 0;
    return kit_main(argc, argv, cases, measures ? 3 : 2);
}
