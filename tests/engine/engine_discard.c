/*
 * Memory that is discarded in mid-snapshot, before it was saved: the snapshot fails cleanly and
 * says so, nothing is published, the process goes on.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/kernel.h"
#include "tests/engine/stepping_source.h"

/* In the worker, right after the instant: block 0 is thrown away. */
static void discard(struct stepping_source *s)
{
    atomic_store(&s->board->discard, true);
    while (!atomic_load(&s->board->discarded))
        usleep(100);
    usleep(2000);
}

int main(void)
{
    struct error e = {0};
    if (geteuid() != 0 || kernel_require(&e)) {
        printf("skipped: needs root and userfaultfd (%s)\n", e.message);
        return 77;
    }
    struct stepping_board *board = stepping_board_new();
    board->n_blocks = 1;
    board->blocks[0] = (struct stepping_block){.kind = STEPPING_ANON, .n_pages = 32768};
    struct stepping_source source;
    if (!stepping_source_open(&source, board))
        return 1;
    source.resumed = discard;
    char image[] = "/tmp/vmsnap-engine-discard";
    unlink(image);
    struct snapshot_options options = stepping_options(image);
    json_t *summary = NULL;
    int ret = snapshot_run_from(&source.base, &options, &summary, &e);
    printf("%d: exit code %d: %s\n", ret, e.exit_code, e.message);
    int failed = ret == 0 || e.exit_code != VMSNAP_EXIT_FAILED || !strstr(e.message, "discarded") ||
                 e.guest != GUEST_RUNNING || access(image, F_OK) == 0;
    uint64_t before = atomic_load(&board->written);
    usleep(50000);
    if (atomic_load(&board->written) == before) {
        printf("the process stands\n");
        failed = 1;
    }
    stepping_source_close(&source);
    unlink(image);
    return failed;
}
