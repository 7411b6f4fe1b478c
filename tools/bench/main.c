/*
 * vmsnap-bench - what the benchmark (tools/bench.sh) needs beside vmsnap itself.
 *
 *   vmsnap-bench floor PID START BYTES BUSY_THREADS    START hexadecimal, as in /proc/PID/maps
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench/floor.h"

static bool number(const char *text, int base, uint64_t *value)
{
    char *end;
    errno = 0;
    *value = strtoull(text, &end, base);
    return *text && !*end && errno == 0;
}

int main(int argc, char **argv)
{
    struct error e = {0};
    uint64_t pid, start, bytes, n_busy;
    if (argc != 6 || strcmp(argv[1], "floor") != 0 || !number(argv[2], 10, &pid) ||
        !number(argv[3], 16, &start) || !number(argv[4], 10, &bytes) ||
        !number(argv[5], 10, &n_busy) || pid == 0 || pid > INT32_MAX || n_busy > FLOOR_MAX_BUSY ||
        bytes == 0 || start % 4096 != 0 || bytes % 4096 != 0) {
        fprintf(stderr, "usage: vmsnap-bench floor PID START BYTES BUSY_THREADS "
                        "(START hexadecimal, whole pages)\n");
        return 2;
    }
    if (floor_run((pid_t)pid, start, bytes, (unsigned)n_busy, &e)) {
        fprintf(stderr, "vmsnap-bench: %s\n", e.message);
        return e.exit_code ? e.exit_code : 1;
    }
    return 0;
}
