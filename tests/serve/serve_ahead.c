/*
 * What comes in beside the faults, and when: ahead of a process that goes through its memory in
 * order, nothing ahead of one that does not, and the rest no faster than it may.
 */
#include <unistd.h>

#include "common/clock.h"
#include "tests/kernel/ktest.h"
#include "tests/serve/serve_kit.h"

#define PAGES 4096u
#define CLUSTERS (PAGES / IMAGE_CLUSTER_PAGES)
#define NOTHING_ELSE 65536u /* bytes per second: hardly anything by the fill */

struct shape {
    enum kit_memory kind;
    enum kit_work work;
    bool fill;
};

static bool serve(struct kit *k, struct kit_board *board, const struct shape *shape, uint64_t rate)
{
    board->n_threads = 1;
    board->n_blocks = 1;
    board->work = shape->work;
    board->blocks[0] = (struct kit_block){.kind = shape->kind, .n_pages = PAGES};
    if (!kit_open(k, board, false))
        return false;
    k->bytes_per_s = rate;
    return kit_serve(k, false, shape->fill);
}

static bool is_as_it_should(const struct shape *shape, const struct server_stats *s)
{
    printf("    %llu faults, pages: %llu on demand, %llu ahead, %llu filled\n",
           (unsigned long long)s->demand_faults, (unsigned long long)s->counts.pages_on_demand,
           (unsigned long long)s->counts.pages_ahead, (unsigned long long)s->counts.pages_filled);
    if (shape->work == KIT_STROLL && shape->fill)
        return s->demand_faults < CLUSTERS / 4 && s->counts.pages_ahead > PAGES / 2;
    return s->counts.pages_ahead < PAGES / 20 && s->demand_faults > CLUSTERS / 2;
}

static int run_once(const struct shape *shape, bool *good)
{
    struct kit_board *board = ktest_shared(sizeof(*board));
    struct kit k;
    KTEST_CHECK(serve(&k, board, shape, NOTHING_ELSE), "no process, image or server");
    KTEST_CHECK(kit_run(&k), "the process hangs");
    KTEST_CHECK(board->wrong == 0, "%llu wrong pages", (unsigned long long)board->wrong);
    struct server_stats s;
    server_get_stats(k.server, &s);
    *good = is_as_it_should(shape, &s);
    kit_close(&k);
    return KTEST_PASS;
}

/* Where others have all CPUs the workers may come too late: one time of ten has to do. */
static int run_ahead(const void *arg)
{
    bool good = false;
    int rc = KTEST_PASS;
    for (int i = 0; i < 10 && !good && rc == KTEST_PASS; i++)
        rc = run_once(arg, &good);
    KTEST_CHECK(rc != KTEST_PASS || good, "what came in ahead of it, and what on demand?");
    return rc;
}

/* The fill alone: at no time more than its rate allows, and in the end all. */
static int run_rate(const void *arg)
{
    const struct shape *shape = arg;
    const uint64_t rate = 5u << 20, slack = rate / 10 + 65536;
    struct kit_board *board = ktest_shared(sizeof(*board));
    struct kit k;
    uint64_t began = clock_monotonic_ns();
    KTEST_CHECK(serve(&k, board, shape, rate), "no process, image or server");
    struct server_stats s;
    uint64_t filled, allowed;
    while (server_stage(k.server) == SERVER_FILLING) {
        server_get_stats(k.server, &s);
        filled = s.counts.pages_filled * IMAGE_PAGE_BYTES;
        allowed = (uint64_t)((double)(clock_monotonic_ns() - began) * (double)rate / 1e9) + slack;
        KTEST_CHECK(filled <= allowed, "%llu bytes where %llu may be", (unsigned long long)filled,
                    (unsigned long long)allowed);
        KTEST_CHECK(clock_monotonic_ns() - began < 30000000000u, "it hangs");
        ktest_nap();
    }
    double seconds = (double)(clock_monotonic_ns() - began) / 1e9;
    server_get_stats(k.server, &s);
    filled = s.counts.pages_filled * IMAGE_PAGE_BYTES;
    printf("    %.1f MiB in %.2f s\n", (double)filled / (1 << 20), seconds);
    KTEST_CHECK(filled > PAGES * 3 / 4 * IMAGE_PAGE_BYTES, "not all was filled");
    KTEST_CHECK(kit_run(&k) && board->wrong == 0, "wrong pages");
    kit_close(&k);
    return KTEST_PASS;
}

static const struct shape in_order = {KIT_ANON, KIT_STROLL, true},
                          in_order_shared = {KIT_MEMFD, KIT_STROLL, true},
                          faults_only = {KIT_ANON, KIT_STROLL, false},
                          anywhere = {KIT_ANON, KIT_READ, true};

int main(int argc, char **argv)
{
    static const struct ktest_case cases[] = {
        {"in-order", run_ahead, &in_order},
        {"in-order-shared", run_ahead, &in_order_shared},
        {"faults-only", run_ahead, &faults_only},
        {"anywhere", run_ahead, &anywhere},
        {"rate", run_rate, &anywhere},
        {"rate-shared", run_rate, &in_order_shared},
    };
    return kit_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
