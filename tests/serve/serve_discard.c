/*
 * What the process gives back while it is being restored reads as zeros, or as what it wrote since:
 * never as the image has it. Also beside the fill, whose workers had decoded the page before.
 *
 * With the rule broken on purpose (VMSNAP_BREAK=discard-ignored) this test has to fail.
 */
#include <unistd.h>

#include "common/kernel.h"
#include "tests/kernel/ktest.h"
#include "tests/serve/serve_kit.h"

struct shape {
    bool prefetch, fill;
};

static int run_shape(const void *arg)
{
    const struct shape *shape = arg;
    struct kit_board *board = ktest_shared(sizeof(*board));
    board->n_threads = 4;
    board->n_rounds = 6000;
    board->work = KIT_DISCARD;
    board->n_blocks = 3;
    board->blocks[0] = (struct kit_block){.kind = KIT_ANON, .n_pages = KIT_DISCARD_PAGES};
    board->blocks[1] = (struct kit_block){.kind = KIT_MEMFD, .n_pages = KIT_DISCARD_PAGES};
    board->blocks[2] = (struct kit_block){.kind = KIT_ANON_HUGE, .n_pages = KIT_DISCARD_PAGES};
    struct kit k;
    KTEST_CHECK(kit_open(&k, board, true), "no process or image");
    KTEST_CHECK(kit_serve(&k, shape->prefetch, shape->fill), "no server");
    kit_go(&k);
    for (int i = 0; i < 600 && !kit_wait_finished(&k, 100) && !board->wrong; i++)
        ;
    KTEST_CHECK(board->wrong || board->finished == board->n_threads, "the process hangs");
    struct server_stats s;
    server_get_stats(k.server, &s);
    printf(
        "    %llu discards, %llu noted; pages: %llu on demand, %llu filled; %llu wrong, of which "
        "%llu came back\n",
        (unsigned long long)board->discards, (unsigned long long)s.counts.pages_discarded,
        (unsigned long long)s.counts.pages_on_demand, (unsigned long long)s.counts.pages_filled,
        (unsigned long long)board->wrong, (unsigned long long)board->came_back);
    KTEST_CHECK(board->wrong == 0, "%llu wrong pages", (unsigned long long)board->wrong);
    KTEST_CHECK(s.counts.pages_discarded > 3000, "hardly anything was discarded");
    kit_close(&k);
    return KTEST_PASS;
}

static const struct shape on_demand = {false, false}, with_fill = {true, true};

int main(int argc, char **argv)
{
    struct error e = {0};
    if (geteuid() != 0 || kernel_require(&e)) {
        printf("skipped: needs root and userfaultfd (%s)\n", e.message);
        return KTEST_SKIP;
    }
    static const struct ktest_case cases[] = {
        {"on-demand", run_shape, &on_demand},
        {"beside-fill", run_shape, &with_fill},
    };
    return ktest_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
