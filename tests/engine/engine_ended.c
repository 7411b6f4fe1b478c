/*
 * The process ends in mid-snapshot. With much memory that takes a while, in which it still counts
 * as alive and its memory is gone: exit code 10 all the same.
 */
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "common/kernel.h"
#include "tests/engine/stepping_source.h"

static void end_process(struct stepping_source *s)
{
    kill(s->pid, SIGKILL);
    usleep(3000);
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
    atomic_store(&board->noise, true);
    board->blocks[0] = (struct stepping_block){.kind = STEPPING_ANON, .n_pages = 262144};
    struct stepping_source source;
    if (!stepping_source_open(&source, board))
        return 1;
    source.resumed = end_process;
    char image[] = "/tmp/vmsnap-engine-ended";
    unlink(image);
    struct snapshot_options options = stepping_options(image);
    json_t *summary = NULL;
    int ret = snapshot_run_from(&source.base, &options, &summary, &e);
    printf("%d: exit code %d: %s\n", ret, e.exit_code, e.message);
    int failed = ret == 0 || e.exit_code != VMSNAP_EXIT_TARGET || e.guest != GUEST_ENDED ||
                 access(image, F_OK) == 0;
    stepping_source_close(&source);
    unlink(image);
    return failed;
}
