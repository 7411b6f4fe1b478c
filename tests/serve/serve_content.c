/*
 * Memory comes back as the image has it: every kind of memory, on demand alone, with the fill
 * running beside, when much or little of it is there already, and after the hand-off.
 */
#include <unistd.h>

#include "common/kernel.h"
#include "restore/memory/handoff.h"
#include "tests/kernel/ktest.h"
#include "tests/serve/serve_kit.h"

struct shape {
    enum kit_before before;
    bool prefetch, fill, poison, split, read_at_the_end;
};

static void add_blocks(struct kit_board *board)
{
    static const uint64_t pages[KIT_KINDS] = {3001, 2048, 2046, 1025, 1024};
    for (int kind = 0; kind < KIT_KINDS; kind++)
        board->blocks[board->n_blocks++] =
            (struct kit_block){.kind = (enum kit_memory)kind, .n_pages = pages[kind]};
}

static int check_reading(const struct kit_board *board)
{
    uint64_t expected = 0;
    for (uint32_t i = 0; i < board->n_blocks; i++)
        expected += board->blocks[i].n_pages;
    expected -= board->poisoned;
    KTEST_CHECK(board->pages_read == expected * board->n_threads, "%llu pages read of %llu",
                (unsigned long long)board->pages_read,
                (unsigned long long)expected * board->n_threads);
    KTEST_CHECK(board->wrong == 0, "%llu wrong pages", (unsigned long long)board->wrong);
    KTEST_CHECK(board->bus_errors == (board->poisoned ? board->n_threads : 0), "%llu bus errors",
                (unsigned long long)board->bus_errors);
    return KTEST_PASS;
}

/* To the end: released, the process's copy of the userfaultfd closed. */
static int hand_off(struct kit *k)
{
    struct error e = {0};
    KTEST_CHECK(kit_wait_stage(k, SERVER_FILLED), "stage %d", (int)server_stage(k->server));
    server_release(k->server);
    KTEST_CHECK(kit_wait_stage(k, SERVER_RELEASED), "stage %d", (int)server_stage(k->server));
    KTEST_CHECK(handoff_close_fd(&k->target, k->attach.target_fd, HANDOFF_UFFD, 5000, &e) == 0,
                "%s", e.message);
    struct mapping_list maps;
    KTEST_CHECK(target_mappings(&k->target, &maps, &e) == 0, "%s", e.message);
    for (uint32_t i = 0; i < k->blocks.count; i++) {
        const struct mapping *m = mapping_find(&maps, k->blocks.items[i].region.hva);
        KTEST_CHECK(m && !m->uffd_missing && !m->uffd_minor, "block %u is still registered", i);
    }
    mapping_list_free(&maps);
    struct handoff_collapse collapse;
    handoff_collapse_begin(&collapse, &k->target, k->img, &k->blocks);
    while (handoff_collapse_step(&collapse))
        ;
    return KTEST_PASS;
}

static int run_shape(const void *arg)
{
    const struct shape *shape = arg;
    KTEST_SKIP_IF(shape->poison && !kernel_probe()->poison, "this kernel can't poison pages");
    struct kit_board *board = ktest_shared(sizeof(*board));
    board->n_threads = 3;
    board->before = shape->before;
    board->poisoned = shape->poison;
    board->split = shape->split;
    add_blocks(board);
    struct kit k;
    KTEST_CHECK(kit_open(&k, board, true), "no process or image");
    KTEST_CHECK(kit_serve(&k, shape->prefetch, shape->fill), "no server");
    if (!shape->read_at_the_end)
        KTEST_CHECK(kit_run(&k), "the process hangs");
    if (shape->fill) {
        int rc = hand_off(&k);
        if (rc)
            return rc;
    }
    if (shape->read_at_the_end)
        KTEST_CHECK(kit_run(&k), "the process hangs");
    int rc = check_reading(board);
    struct server_stats s;
    server_get_stats(k.server, &s);
    printf("    %llu faults, pages: %llu on demand, %llu prefetched, %llu filled\n",
           (unsigned long long)s.demand_faults, (unsigned long long)s.counts.pages_on_demand,
           (unsigned long long)s.counts.pages_prefetched,
           (unsigned long long)s.counts.pages_filled);
    if (rc == 0 && !shape->fill && shape->before == KIT_FRESH)
        KTEST_CHECK(s.demand_faults > 100, "hardly any fault: nothing was tested");
    if (rc == 0 && shape->fill && shape->read_at_the_end)
        KTEST_CHECK(s.counts.pages_filled > 100, "nothing was filled");
    kit_close(&k);
    return rc;
}

static const struct shape
    on_demand = {.before = KIT_FRESH},
    with_fill = {.before = KIT_FRESH, .prefetch = true, .fill = true},
    fill_first = {.before = KIT_FRESH, .prefetch = true, .fill = true, .read_at_the_end = true},
    filled = {.before = KIT_FILLED, .prefetch = true, .fill = true},
    unmapped = {.before = KIT_UNMAPPED},
    locked = {.before = KIT_LOCKED, .prefetch = true, .fill = true},
    sprinkled = {.before = KIT_SPRINKLED, .prefetch = true, .fill = true},
    sprinkled_demand = {.before = KIT_SPRINKLED}, poisoned = {.before = KIT_FRESH, .poison = true},
    split = {.before = KIT_FRESH, .split = true},
    split_fill = {.before = KIT_FRESH, .split = true, .fill = true, .read_at_the_end = true},
    poisoned_fill = {.before = KIT_FILLED, .poison = true, .fill = true, .read_at_the_end = true};

int main(int argc, char **argv)
{
    static const struct ktest_case cases[] = {
        {"on-demand", run_shape, &on_demand},
        {"demand-beside-fill", run_shape, &with_fill},
        {"fill-then-read", run_shape, &fill_first},
        {"preallocated", run_shape, &filled},
        {"preallocated-unmapped", run_shape, &unmapped},
        {"preallocated-and-locked", run_shape, &locked},
        {"some-present", run_shape, &sprinkled},
        {"some-present-on-demand", run_shape, &sprinkled_demand},
        {"split", run_shape, &split},
        {"split-fill", run_shape, &split_fill},
        {"poisoned", run_shape, &poisoned},
        {"poisoned-fill", run_shape, &poisoned_fill},
    };
    return kit_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
