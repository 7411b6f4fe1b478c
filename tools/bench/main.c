/*
 * vmsnap-bench - what the benchmark (tools/bench.sh) needs beside vmsnap itself.
 *
 *   vmsnap-bench floor PID START BYTES BUSY_THREADS    START hexadecimal, as in /proc/PID/maps
 *   vmsnap-bench missing PID START FILE UNIT_BYTES     the same; FILE holds the memory
 *   vmsnap-bench handler KIND SOCK FILE          KIND: on_demand, on_demand_lazy, fault_all
 *   vmsnap-bench decode IMAGE THREADS
 *   vmsnap-bench copy BYTES PIECE_BYTES THREADS
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench/floor.h"
#include "tools/bench/handlers.h"
#include "tools/bench/missing.h"
#include "tools/bench/speeds.h"

#define PAGE_BYTES 4096u
#define MAX_UNIT_BYTES (1u << 21)

/* A command's own words. False: they are no such thing. Else *ret is what became of it. */
typedef bool run_command(char **words, int *ret, struct error *e);

static bool number(const char *text, int base, uint64_t least, uint64_t most, uint64_t *value)
{
    char *end;
    errno = 0;
    *value = strtoull(text, &end, base);
    return *text && !*end && errno == 0 && *value >= least && *value <= most;
}

static bool number_of_pages(const char *text, int base, uint64_t *value)
{
    return number(text, base, PAGE_BYTES, UINT64_MAX, value) && *value % PAGE_BYTES == 0;
}

static bool run_floor(char **words, int *ret, struct error *e)
{
    uint64_t pid, start, bytes, n_busy;
    if (!number(words[0], 10, 1, INT32_MAX, &pid) || !number_of_pages(words[1], 16, &start) ||
        !number_of_pages(words[2], 10, &bytes) || !number(words[3], 10, 0, FLOOR_MAX_BUSY, &n_busy))
        return false;
    *ret = floor_run((pid_t)pid, start, bytes, (unsigned)n_busy, e);
    return true;
}

static bool run_missing(char **words, int *ret, struct error *e)
{
    uint64_t pid, start, unit_bytes;
    if (!number(words[0], 10, 1, INT32_MAX, &pid) || !number_of_pages(words[1], 16, &start) ||
        !number_of_pages(words[3], 10, &unit_bytes) || unit_bytes > MAX_UNIT_BYTES)
        return false;
    *ret = missing_run((pid_t)pid, start, words[2], unit_bytes, e);
    return true;
}

static bool run_handler(char **words, int *ret, struct error *e)
{
    const struct handler_kind *kind = handlers_find(words[0]);
    if (kind)
        *ret = handlers_run(kind, words[1], words[2], e);
    return kind != NULL;
}

static bool run_decode(char **words, int *ret, struct error *e)
{
    uint64_t n_threads;
    if (!number(words[1], 10, 1, SPEEDS_MAX_THREADS, &n_threads))
        return false;
    *ret = speeds_decode(words[0], (unsigned)n_threads, e);
    return true;
}

static bool run_copy(char **words, int *ret, struct error *e)
{
    uint64_t bytes, piece_bytes, n_threads;
    if (!number_of_pages(words[0], 10, &bytes) || !number_of_pages(words[1], 10, &piece_bytes) ||
        piece_bytes > MAX_UNIT_BYTES || !number(words[2], 10, 1, SPEEDS_MAX_THREADS, &n_threads))
        return false;
    *ret = speeds_copy(bytes, piece_bytes, (unsigned)n_threads, e);
    return true;
}

static const struct {
    const char *name, *words;
    int n_words;
    run_command *run;
} commands[] = {
    {"floor", "PID START BYTES BUSY_THREADS", 4, run_floor},
    {"missing", "PID START FILE UNIT_BYTES", 4, run_missing},
    {"handler", "on_demand|on_demand_lazy|fault_all SOCK FILE", 3, run_handler},
    {"decode", "IMAGE THREADS", 2, run_decode},
    {"copy", "BYTES PIECE_BYTES THREADS", 3, run_copy},
};

static int explain_usage(void)
{
    fputs("usage: vmsnap-bench COMMAND (START hexadecimal; whole pages)\n", stderr);
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
        fprintf(stderr, "  vmsnap-bench %s %s\n", commands[i].name, commands[i].words);
    return 2;
}

int main(int argc, char **argv)
{
    for (size_t i = 0; argc > 1 && i < sizeof(commands) / sizeof(commands[0]); i++) {
        struct error e = {0};
        int ret = 0;
        if (strcmp(argv[1], commands[i].name) != 0 || argc - 2 != commands[i].n_words)
            continue;
        if (!commands[i].run(argv + 2, &ret, &e))
            break;
        if (ret)
            fprintf(stderr, "vmsnap-bench: %s\n", e.message);
        return ret ? e.exit_code ? e.exit_code : 1 : 0;
    }
    return explain_usage();
}
