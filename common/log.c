#include "common/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static int current_level = LOG_NORMAL;

void log_set_level(int level)
{
    current_level = level;
}

int log_level(void)
{
    return current_level;
}

/* One write() per line, so that lines of several threads and processes do not mix. */
static void log_line(const char *prefix, const char *fmt, va_list ap)
{
    char line[1024];
    int used = snprintf(line, sizeof(line), "%svmsnap: %s", isatty(STDERR_FILENO) ? "\r\033[K" : "",
                        prefix);
    int n = vsnprintf(line + used, sizeof(line) - (size_t)used - 1, fmt, ap);
    if (n < 0)
        return;
    size_t len = (size_t)used + (size_t)n;
    if (len > sizeof(line) - 2)
        len = sizeof(line) - 2;
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
