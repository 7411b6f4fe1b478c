/* report.h - what the programs inside a test guest share: time, random numbers, options, and lines
 * on the console, each in one write() so that programs do not cut each other's lines. */
#ifndef VMSNAP_TESTS_GUEST_REPORT_H
#define VMSNAP_TESTS_GUEST_REPORT_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

static inline uint64_t report_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

__attribute__((format(printf, 1, 2))) static inline void report_line(const char *format, ...)
{
    char line[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof(line) - 1, format, args);
    va_end(args);
    if (n < 0)
        return;
    size_t len = (size_t)n < sizeof(line) - 1 ? (size_t)n : sizeof(line) - 2;
    line[len++] = '\n';
    if (write(STDOUT_FILENO, line, len) < 0)
        _exit(1);
}

/* Ends the program; `what` failed. */
__attribute__((noreturn)) static inline void report_die(const char *program, const char *what)
{
    report_line("ERROR %s: %s: %m", program, what);
    _exit(1);
}

/* xorshift64*: `state` is never zero. */
static inline uint64_t report_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1dull;
}

static inline uint64_t report_seed(void)
{
    uint64_t seed = 0;
    if (getrandom(&seed, sizeof(seed), GRND_NONBLOCK) != (ssize_t)sizeof(seed))
        seed = report_now_ns();
    return seed | 1;
}

/* The number after "NAME=" among the arguments, or `otherwise`. */
static inline uint64_t report_option(int argc, char **argv, const char *name, uint64_t otherwise)
{
    size_t len = strlen(name);
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], name, len) == 0 && argv[i][len] == '=')
            return strtoull(argv[i] + len + 1, NULL, 0);
    }
    return otherwise;
}

#endif
