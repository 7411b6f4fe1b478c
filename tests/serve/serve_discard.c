/*
 * What the process gives back while it is being restored reads as zeros, or as what it wrote since:
 * never as the image has it. Also beside the fill, whose workers had decoded the page before.
 *
 * With a rule broken on purpose (VMSNAP_BREAK=discard-ignored or filled-over-discard) it has to
 * fail.
 */
#include <stdlib.h>
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

/* A process of its own: it counts how often it comes to the point. */
static int serve_held(void *opaque)
{
    struct kit *k = opaque;
    if (!kit_serve(k, false, true) || !k->blocks.items[0].window)
        return 1;
    for (;;)
        pause();
}

/*
 * A worker is held in the middle: it has claimed a piece of shared memory and is about to write
 * there. All of it is given back, and touched: that waits. The worker goes on, and writes content
 * that nobody may see any more.
 */
static int run_held(const void *arg)
{
    char log[64], go[72];
    snprintf(log, sizeof(log), "/tmp/vmsnap-held-%d", (int)getpid());
    snprintf(go, sizeof(go), "%s.go", log);
    setenv("VMSNAP_PAUSE_AT", "fill-claimed", 1);
    setenv("VMSNAP_PAUSE_LOG", log, 1);
    struct kit_board *board = ktest_shared(sizeof(*board));
    board->n_threads = 1;
    board->work = KIT_GIVE_UP;
    board->n_blocks = 1;
    board->blocks[0] =
        (struct kit_block){.kind = *(const enum kit_memory *)arg, .n_pages = KIT_GIVEN_UP};
    struct kit k;
    KTEST_SKIP_IF(!kernel_probe()->minor_shmem, "nothing is filled in place here");
    bool opened = kit_open(&k, board, false);
    KTEST_SKIP_IF(board->n_blocks == 0, "this host has no such memory");
    KTEST_CHECK(opened, "no process or image");
    pid_t server = ktest_spawn(serve_held, &k);
    bool held = KTEST_WAIT(access(log, F_OK) == 0 || ktest_ended(server));
    KTEST_CHECK(held && !ktest_ended(server), "nothing is filled in place");
    kit_go(&k);
    bool gave = KTEST_WAIT(board->discards == KIT_GIVEN_UP);
    usleep(50000);
    unsigned early = board->finished;
    FILE *f = fopen(go, "w");
    bool finished = f && kit_wait_finished(&k, 5000);
    if (f)
        fclose(f);
    unlink(go);
    unlink(log);
    printf("    %llu pages read, %llu wrong pages, of which %llu came back\n",
           (unsigned long long)board->pages_read, (unsigned long long)board->wrong,
           (unsigned long long)board->came_back);
    KTEST_CHECK(gave, "nothing was discarded");
    KTEST_CHECK(early == 0, "it did not wait for the worker: nothing was tested");
    KTEST_CHECK(finished, "the process hangs");
    KTEST_CHECK(board->wrong == 0, "%llu wrong pages", (unsigned long long)board->wrong);
    ktest_end(server);
    kit_close(&k);
    return KTEST_PASS;
}

static const enum kit_memory held_memfd = KIT_MEMFD, held_huge = KIT_HUGETLB;

static const struct shape on_demand = {false, false}, with_fill = {true, true};

int main(int argc, char **argv)
{
    static const struct ktest_case cases[] = {
        {"on-demand", run_shape, &on_demand},
        {"beside-fill", run_shape, &with_fill},
        {"while-filled", run_held, &held_memfd},
        {"while-filled-huge", run_held, &held_huge},
    };
    return kit_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
