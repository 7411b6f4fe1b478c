/*
 * A sink that is slow, and several writers that never rest: for much longer than --max-stall there
 * is always a fault waiting, yet none of them is held for long. That is no stall.
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/engine/stepping_test.h"

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
    struct stepping_test t;
    int unable = stepping_test_begin(&t);
    if (unable)
        return unable;
    atomic_store(&t.board->noise, true);
    for (int i = 0; i < 4; i++)
        stepping_test_add(&t, STEPPING_ANON, 4096);
    if (!stepping_test_start(&t))
        return 1;
    pid_t reader = -1;
    int fd = open(t.image, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600),
        into = slow_reader(fd, &reader), out = dup(STDOUT_FILENO);
    dup2(into, STDOUT_FILENO);
    close(into);
    struct snapshot_options options = stepping_options("-");
    options.max_stall_ms = MAX_STALL_MS;
    json_t *summary;
    int failed = stepping_test_snapshot(&t, &options, &summary) != 0;
    dup2(out, STDOUT_FILENO);
    waitpid(reader, NULL, 0);
    json_int_t throttled = stepping_number(summary, "throttled_ns");
    json_int_t longest = stepping_number(summary, "longest_gap_ns");
    printf("writers waited %lld ms for buffers, the longest fault %lld ms\n",
           (long long)throttled / 1000000, (long long)longest / 1000000);
    failed |= throttled / 1000000 < 2 * MAX_STALL_MS || longest / 1000000 > MAX_STALL_MS ||
              stepping_judge(t.image) != 0;
    json_decref(summary);
    close(out);
    stepping_test_end(&t);
    return failed;
}
