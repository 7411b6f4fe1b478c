#include "common/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Texts of a VMM, a file name: no control character may reach a terminal, no second line a log. */
static void make_one_line(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            *text = '?';
}

int(error_set)(struct error *e, enum vmsnap_exit exit_code, int err, const char *fmt, ...)
{
    if (e) {
        va_list ap;
        va_start(ap, fmt);
        int n = vsnprintf(e->message, sizeof(e->message), fmt, ap);
        va_end(ap);
        if (err && n >= 0 && (size_t)n < sizeof(e->message)) {
            char text[128];
            snprintf(e->message + n, sizeof(e->message) - (size_t)n, ": %s",
                     strerror_r(err, text, sizeof(text)));
        }
        make_one_line(e->message);
        e->exit_code = exit_code;
        e->err = err;
        e->hint[0] = '\0';
        e->vmm_pid = 0;
    }
    return err ? -err : -EIO;
}

void error_wrap(struct error *e, const char *fmt, ...)
{
    if (!e)
        return;
    char context[sizeof(e->message)];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(context, sizeof(context) - 2, fmt, ap);
    va_end(ap);
    if (n < 0)
        return;
    size_t used = strlen(context);
    memcpy(context + used, ": ", 3);
    used += 2;
    size_t keep = strlen(e->message);
    if (keep > sizeof(e->message) - 1 - used)
        keep = sizeof(e->message) - 1 - used;
    memmove(e->message + used, e->message, keep);
    e->message[used + keep] = '\0';
    memcpy(e->message, context, used);
    make_one_line(e->message);
}

void error_hint(struct error *e, const char *fmt, ...)
{
    if (!e || e->hint[0])
        return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->hint, sizeof(e->hint), fmt, ap);
    va_end(ap);
    make_one_line(e->hint);
}

const char *guest_state_name(enum guest_state state)
{
    switch (state) {
    case GUEST_UNTOUCHED:
        return "untouched";
    case GUEST_RUNNING:
        return "running";
    case GUEST_PAUSED:
        return "paused";
    case GUEST_WAITING:
        return "waiting";
    case GUEST_ENDED:
        return "ended";
    case GUEST_NOT_STARTED:
        return "not-started";
    case GUEST_UNKNOWN:
        break;
    }
    return "unknown";
}
