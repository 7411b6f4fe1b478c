#include "common/log.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int current_level = LOG_NORMAL;
static char process[32]; /* whose guest it is about; empty: there is one, or none */

void log_set_level(int level)
{
    current_level = level;
}

int log_level(void)
{
    return current_level;
}

void log_set_process(int pid)
{
    if (pid > 0)
        snprintf(process, sizeof(process), "process %d", pid);
    else
        process[0] = '\0';
}

/* As a whole number: process 12 is not named by "process 123". */
static bool names_process(const char *text)
{
    size_t len = strlen(process);
    for (const char *at = text; (at = strstr(at, process)); at += len)
        if (at[len] < '0' || at[len] > '9')
            return true;
    return false;
}

/* One write() per line, so that lines of several threads and processes do not mix. */
static void log_line(const char *prefix, const char *fmt, va_list ap)
{
    char text[1024], line[1200];
    if (vsnprintf(text, sizeof(text), fmt, ap) < 0)
        return;
    bool whose = process[0] && !names_process(text);
    int n = snprintf(line, sizeof(line) - 1, "%svmsnap: %s%s%s%s",
                     isatty(STDERR_FILENO) ? "\r\033[K" : "", prefix, whose ? process : "",
                     whose ? ": " : "", text);
    size_t len = n < (int)sizeof(line) - 1 ? (size_t)n : sizeof(line) - 2;
    line[len++] = '\n';
    if (write(STDERR_FILENO, line, len) < 0)
        return; /* nowhere left to say it */
}

void log_warn(const char *fmt, ...)
{
    if (current_level < LOG_NORMAL)
        return;
    va_list ap;
    va_start(ap, fmt);
    log_line("warning: ", fmt, ap);
    va_end(ap);
}

void log_info(const char *fmt, ...)
{
    if (current_level < LOG_VERBOSE)
        return;
    va_list ap;
    va_start(ap, fmt);
    log_line("", fmt, ap);
    va_end(ap);
}

void log_debug(const char *fmt, ...)
{
    if (current_level < LOG_DEBUG)
        return;
    va_list ap;
    va_start(ap, fmt);
    log_line("", fmt, ap);
    va_end(ap);
}
