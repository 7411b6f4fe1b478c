/*
 * A cluster that can't be read is never answered: who touches it waits, all others go on, the error
 * names the place, and the memory stays registered for good.
 */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "common/kernel.h"
#include "tests/kernel/ktest.h"
#include "tests/serve/serve_kit.h"

#define DAMAGED_PAGE 505u /* in cluster 126, which is not zeros */

/* Flips a byte in the cluster's record, in the file. */
static bool damage(const struct kit *k, uint64_t cluster)
{
    uint64_t entry = image_index_entry(k->img, cluster);
    off_t at = (off_t)(IMAGE_INDEX_OFFSET(entry) + sizeof(struct image_record) + 100);
    int fd = open(k->image_path, O_RDWR | O_CLOEXEC);
    unsigned char c = 0;
    bool ok = fd >= 0 && pread(fd, &c, 1, at) == 1;
    c ^= 1;
    ok = ok && pwrite(fd, &c, 1, at) == 1;
    close(fd);
    return ok;
}

static int open_damaged(struct kit *k, struct kit_board *board)
{
    board->n_blocks = 1;
    board->blocks[0] = (struct kit_block){.kind = KIT_ANON, .n_pages = 4096};
    KTEST_CHECK(kit_open(k, board, false), "no process or image");
    KTEST_CHECK(damage(k, k->blocks.items[0].first_cluster + DAMAGED_PAGE / IMAGE_CLUSTER_PAGES),
                "can't damage the image");
    return KTEST_PASS;
}

static int check_error(struct kit *k)
{
    struct error e = {0};
    KTEST_CHECK(KTEST_WAIT(server_take_error(k->server, &e)), "no error");
    printf("    %s\n", e.message);
    KTEST_CHECK(e.exit_code == VMSNAP_EXIT_IMAGE, "exit code %d", e.exit_code);
    KTEST_CHECK(strstr(e.message, "block0") && strstr(e.message, "0x1f8000"), "%s", e.message);
    KTEST_CHECK(!server_take_error(k->server, &e), "told twice: %s", e.message);
    return KTEST_PASS;
}

static int on_demand(const void *arg)
{
    (void)arg;
    struct kit_board *board = ktest_shared(sizeof(*board));
    board->n_threads = 1;
    board->work = KIT_TOUCH;
    board->touch_page = DAMAGED_PAGE;
    struct kit k;
    if (open_damaged(&k, board))
        return KTEST_FAIL;
    KTEST_CHECK(kit_serve(&k, false, false), "no server");
    kit_go(&k);
    if (check_error(&k))
        return KTEST_FAIL;
    KTEST_CHECK(!kit_wait_finished(&k, 200), "it was answered");
    KTEST_CHECK(board->wrong == 0 && board->pages_read == 0, "it was answered");
    kit_close(&k);
    return KTEST_PASS;
}

static int by_the_fill(const void *arg)
{
    (void)arg;
    struct kit_board *board = ktest_shared(sizeof(*board));
    board->n_threads = 1;
    struct kit k;
    if (open_damaged(&k, board))
        return KTEST_FAIL;
    KTEST_CHECK(kit_serve(&k, true, true), "no server");
    KTEST_CHECK(kit_wait_stage(&k, SERVER_INCOMPLETE), "stage %d", (int)server_stage(k.server));
    if (check_error(&k))
        return KTEST_FAIL;
    struct server_stats s;
    server_get_stats(k.server, &s);
    KTEST_CHECK(s.counts.clusters_damaged == 1, "%llu damaged",
                (unsigned long long)s.counts.clusters_damaged);
    server_release(k.server); /* must not be heeded */
    kit_go(&k);
    KTEST_CHECK(!kit_wait_finished(&k, 300), "all pages were read, the damaged one too");
    KTEST_CHECK(board->wrong == 0, "%llu wrong pages", (unsigned long long)board->wrong);
    KTEST_CHECK(server_stage(k.server) == SERVER_INCOMPLETE, "stage %d",
                (int)server_stage(k.server));
    kit_close(&k);
    return KTEST_PASS;
}

int main(int argc, char **argv)
{
    struct error e = {0};
    if (geteuid() != 0 || kernel_require(&e)) {
        printf("skipped: needs root and userfaultfd (%s)\n", e.message);
        return KTEST_SKIP;
    }
    static const struct ktest_case cases[] = {
        {"on-demand", on_demand, NULL},
        {"by-the-fill", by_the_fill, NULL},
    };
    return ktest_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
