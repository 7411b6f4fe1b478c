/*
 * The server is killed, at once and at a random moment: the process waits for what is missing, and
 * never reads anything but what the image has.
 */
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/kernel/ktest.h"
#include "tests/serve/serve_kit.h"

/* The server's process: serves until it is killed. */
static int run_server(void *opaque)
{
    struct kit *k = opaque;
    if (!kit_serve(k, true, true))
        return 1;
    kit_go(k);
    for (;;)
        pause();
}

/* Until nothing more is read: what was in when the server died may take a while. */
static void let_it_stand_still(const struct kit_board *board)
{
    unsigned long long before;
    do {
        before = board->pages_read;
        usleep(100000);
    } while (board->pages_read != before && board->finished == 0);
}

static int kill_after(const void *arg)
{
    unsigned pages = *(const unsigned *)arg;
    struct kit_board *board = ktest_shared(sizeof(*board));
    board->n_threads = 2;
    board->n_blocks = 4;
    static const enum kit_memory kinds[] = {KIT_ANON, KIT_MEMFD, KIT_PRIVATE_FILE, KIT_ANON_HUGE};
    for (unsigned i = 0; i < 4; i++)
        board->blocks[i] = (struct kit_block){.kind = kinds[i], .n_pages = 16384};
    struct kit k;
    KTEST_CHECK(kit_open(&k, board, false), "no process or image");
    pid_t server = ktest_spawn(run_server, &k);
    KTEST_CHECK(KTEST_WAIT(atomic_load(&board->pages_read) >= pages), "nothing was read");
    ktest_end(server);
    let_it_stand_still(board);
    unsigned long long before = board->pages_read;
    usleep(300000);
    printf("    killed after %llu pages; %u of %u threads have finished, %llu pages wrong\n",
           before, board->finished, board->n_threads, (unsigned long long)board->wrong);
    KTEST_CHECK(board->wrong == 0, "wrong pages");
    KTEST_CHECK(board->pages_read == before, "it goes on without a server");
    KTEST_CHECK(board->finished == 0, "nothing was missing: nothing was tested");
    KTEST_CHECK(!ktest_ended(k.pid), "the process is dead");
    kit_close(&k);
    return KTEST_PASS;
}

static const unsigned moments[] = {1, 500, 3000, 9000};

int main(int argc, char **argv)
{
    static const struct ktest_case cases[] = {
        {"at-the-first-page", kill_after, &moments[0]},
        {"after-500-pages", kill_after, &moments[1]},
        {"after-3000-pages", kill_after, &moments[2]},
        {"after-9000-pages", kill_after, &moments[3]},
    };
    return kit_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
