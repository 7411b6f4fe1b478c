/*
 * Started by a program that ignores SIGCHLD, as some daemons and `trap '' CHLD` do: the kernel then
 * reaps our children itself. The end of the worker must be noticed all the same.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/kernel.h"
#include "tests/engine/stepping_source.h"

int main(void)
{
    struct error e = {0};
    if (geteuid() != 0 || kernel_require(&e)) {
        printf("skipped: needs root and userfaultfd (%s)\n", e.message);
        return 77;
    }
    struct stepping_board *board = stepping_board_new();
    board->n_blocks = 1;
    board->blocks[0] = (struct stepping_block){.kind = STEPPING_ANON, .n_pages = 2048};
    struct stepping_source source;
    if (!stepping_source_open(&source, board))
        return 1;
    char image[] = "/tmp/vmsnap-engine-XXXXXX";
    int fd = mkstemp(image);
    struct snapshot_options options = stepping_options(image);
    json_t *summary = NULL;
    signal(SIGCHLD, SIG_IGN);
    alarm(30);
    int failed = snapshot_run_from(&source.base, &options, &summary, &e) != 0;
    if (failed)
        printf("%s\n", e.message);
    failed |= stepping_judge(image) != 0;
    json_decref(summary);
    stepping_source_close(&source);
    unlink(image);
    close(fd);
    return failed;
}
