/*
 * A sink that is slow, and several writers that never rest: for much longer than --max-stall there
 * is always a fault waiting, yet none of them is held for long. That is no stall.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/kernel.h"
#include "tests/engine/stepping_source.h"

#define MAX_STALL_MS 700
#define BYTES_PER_TICK (256u << 10)
#define TICK_US 32000 /* 8 MB/s */

/* A process that reads `from` at a steady pace into `to`. Returns the end to write to. */
static int slow_reader(int to, pid_t *pid)
{
    int ends[2];
    static char data[BYTES_PER_TICK];
    if (pipe2(ends, O_CLOEXEC))
        return -1;
    *pid = fork();
    if (*pid == 0) {
        close(ends[1]);
        for (;;) {
            ssize_t n = 0, sum = 0;
            while (sum < (ssize_t)sizeof(data) &&
                   (n = read(ends[0], data, sizeof(data) - (size_t)sum)) > 0) {
                sum += n;
                if (write(to, data, (size_t)n) != n)
                    _exit(1);
            }
            if (n <= 0)
                _exit(0);
            usleep(TICK_US);
        }
    }
    close(ends[0]);
    return ends[1];
}

int main(void)
{
    struct error e = {0};
    if (geteuid() != 0 || kernel_require(&e)) {
        printf("skipped: needs root and userfaultfd (%s)\n", e.message);
        return 77;
    }
    struct stepping_board *board = stepping_board_new();
    atomic_store(&board->noise, true);
    for (board->n_blocks = 0; board->n_blocks < 4; board->n_blocks++)
        board->blocks[board->n_blocks] =
            (struct stepping_block){.kind = STEPPING_ANON, .n_pages = 4096};
    struct stepping_source source;
    if (!stepping_source_open(&source, board))
        return 1;
    char image[] = "/tmp/vmsnap-engine-XXXXXX";
    pid_t reader = -1;
    int fd = mkstemp(image), into = slow_reader(fd, &reader), out = dup(STDOUT_FILENO);
    dup2(into, STDOUT_FILENO);
    close(into);
    struct snapshot_options options = stepping_options("-");
    options.max_stall_ms = MAX_STALL_MS;
    json_t *summary = NULL;
    int failed = snapshot_run_from(&source.base, &options, &summary, &e) != 0;
    dup2(out, STDOUT_FILENO);
    waitpid(reader, NULL, 0);
    if (failed)
        printf("%s\n", e.message);
    json_int_t throttled = json_integer_value(json_object_get(summary, "throttled_ns"));
    json_int_t longest = json_integer_value(json_object_get(summary, "longest_gap_ns"));
    printf("writers waited %lld ms for buffers, the longest fault %lld ms\n",
           (long long)throttled / 1000000, (long long)longest / 1000000);
    failed |= throttled / 1000000 < 2 * MAX_STALL_MS || longest / 1000000 > MAX_STALL_MS ||
              stepping_judge(image) != 0;
    json_decref(summary);
    stepping_source_close(&source);
    unlink(image);
    return failed;
}
