/*
 * There is no room for shared memory: the file system that it lies in is full. Who waits goes on
 * waiting, nobody gets a SIGBUS, the error says so; and when there is room again all of it comes.
 */
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/kernel/ktest.h"
#include "tests/serve/serve_kit.h"

#define PAGES 4096u
#define WINDOW_US 500000u
#define SLEEPS_MOST 100u /* of 50 ms each, ten are to be expected */

static int run_full(const void *arg)
{
    bool fill = *(const bool *)arg;
    struct kit_board *board = ktest_shared(sizeof(*board));
    board->n_threads = 2;
    board->n_blocks = 1;
    board->blocks[0] = (struct kit_block){.kind = KIT_MEMFD, .n_pages = PAGES};
    char dir[40];
    snprintf(dir, sizeof(dir), "/tmp/vmsnap-room-%d", (int)getpid());
    snprintf(board->path, sizeof(board->path), "%s/memory", dir);
    KTEST_CHECK(mkdir(dir, 0700) == 0, "no directory");
    bool mounted = mount("tmpfs", dir, "tmpfs", 0, "size=4m") == 0;
    struct kit k;
    bool serves = mounted && kit_open(&k, board, false) && kit_serve(&k, false, fill);
    /* Nobody but the kit has it from here on, and it is gone with the case however that ends. */
    if (serves)
        kit_go(&k);
    struct error e = {0};
    bool said = serves && KTEST_WAIT(server_take_error(k.server, &e));
    usleep(200000);
    unsigned early = board->finished;
    bool grown = said && mount("tmpfs", dir, "tmpfs", MS_REMOUNT, "size=64m") == 0;
    bool finished = grown && kit_wait_finished(&k, 20000);
    umount2(dir, MNT_DETACH);
    rmdir(dir);
    KTEST_CHECK(serves, "no server");
    printf("    %s; %llu pages read, %llu wrong\n", e.message,
           (unsigned long long)board->pages_read, (unsigned long long)board->wrong);
    KTEST_CHECK(said && early == 0, "there was room");
    KTEST_CHECK(finished, "the process hangs");
    KTEST_CHECK(board->wrong == 0 && board->bus_errors == 0, "%llu wrong pages",
                (unsigned long long)board->wrong);
    KTEST_CHECK(board->pages_read == 2ull * PAGES, "pages read");
    kit_close(&k);
    return KTEST_PASS;
}

/* Sleeps of the server's. */
static uint64_t count_sleeps(const struct kit *k)
{
    struct server_stats stats;
    server_get_stats(k->server, &stats);
    return stage_times(&stats.serve->asleep);
}

/* So little room is missing that all the rest is queued: the workers have said so and are gone, and
 * the server tries again at its own pace, not all the time. */
static int run_at_the_end(const void *arg)
{
    (void)arg;
    struct kit_board *board = ktest_shared(sizeof(*board));
    board->n_threads = board->n_blocks = 1;
    board->blocks[0] = (struct kit_block){.kind = KIT_MEMFD, .n_pages = PAGES};
    char dir[40];
    snprintf(dir, sizeof(dir), "/tmp/vmsnap-room-%d", (int)getpid());
    snprintf(board->path, sizeof(board->path), "%s/memory", dir);
    KTEST_CHECK(mkdir(dir, 0700) == 0, "no directory");
    bool mounted = mount("tmpfs", dir, "tmpfs", 0, "size=12m") == 0;
    struct kit k;
    struct error e = {0};
    bool serves = mounted && kit_open(&k, board, false) && kit_serve(&k, false, true);
    bool said = serves && KTEST_WAIT(server_take_error(k.server, &e));
    usleep(WINDOW_US);
    uint64_t before = said ? count_sleeps(&k) : 0;
    usleep(WINDOW_US);
    uint64_t n = said ? count_sleeps(&k) - before : 0;
    bool grown = said && mount("tmpfs", dir, "tmpfs", MS_REMOUNT, "size=64m") == 0;
    bool filled = grown && kit_wait_stage(&k, SERVER_FILLED);
    umount2(dir, MNT_DETACH);
    rmdir(dir);
    KTEST_CHECK(said, "there was room");
    printf("    %s; %llu sleeps in half a second\n", e.message, (unsigned long long)n);
    KTEST_CHECK(n > 0 && n < SLEEPS_MOST, "%llu sleeps", (unsigned long long)n);
    KTEST_CHECK(filled, "it is not filled");
    kit_close(&k);
    return KTEST_PASS;
}

static const bool on_demand = false, with_fill = true;

int main(int argc, char **argv)
{
    static const struct ktest_case cases[] = {
        {"on-demand", run_full, &on_demand},
        {"beside-fill", run_full, &with_fill},
        {"at-the-end", run_at_the_end, NULL},
    };
    return kit_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
