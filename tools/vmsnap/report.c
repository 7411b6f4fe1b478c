#include "tools/vmsnap/report.h"

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"

static struct {
    bool json, quiet;
    FILE *results; /* NULL: stdout */
    int failed;    /* errno of the first result that was lost */
    enum guest_state guest;
    long vmm_pid;
} report;

void report_setup(bool json, bool quiet)
{
    report.json = json;
    report.quiet = quiet;
}

void report_to_stderr(void)
{
    report.results = stderr;
}

void report_to_stream(FILE *f)
{
    report.results = f;
}

bool report_is_json(void)
{
    return report.json;
}

bool report_wants_progress(void)
{
    return !report.quiet && isatty(STDERR_FILENO);
}

static FILE *results(void)
{
    return report.results ? report.results : stdout;
}

static void note_failure(int err)
{
    if (report.failed == 0)
        report.failed = err ? err : EIO;
}

/* One line, flushed, so that a reader at the other end of a pipe sees it at once. */
static void print_object(FILE *f, const char *type, json_t *object)
{
    json_t *whole = json_pack("{s:s, s:i}", "type", type, "schema_version", REPORT_SCHEMA_VERSION);
    char *text = NULL;
    if (whole && object && json_object_update(whole, object) == 0)
        text = json_dumps(whole, JSON_COMPACT);
    if (!text)
        note_failure(ENOMEM);
    else if (fprintf(f, "%s\n", text) < 0 || fflush(f) != 0)
        note_failure(errno);
    free(text);
    json_decref(whole);
}

static void note_guest(const char *type, const json_t *object)
{
    const char *name = json_string_value(json_object_get(object, "guest_state"));
    const json_t *pid = json_object_get(object, "vmm_pid");
    for (int state = GUEST_UNTOUCHED; name && state <= GUEST_UNKNOWN; state++)
        if (strcmp(name, guest_state_name((enum guest_state)state)) == 0)
            report.guest = (enum guest_state)state;
    if (strcmp(type, "exit") == 0)
        report.guest = GUEST_ENDED;
    if (json_is_integer(pid))
        report.vmm_pid = (long)json_integer_value(pid);
}

void report_get_guest(enum guest_state *state, long *vmm_pid)
{
    *state = report.guest;
    *vmm_pid = report.vmm_pid;
}

void report_object(const char *type, json_t *object)
{
    note_guest(type, object);
    if (report.json)
        print_object(results(), type, object);
    json_decref(object);
}

static void print_line(const char *fmt, va_list ap)
{
    FILE *f = results();
    if (vfprintf(f, fmt, ap) < 0 || fputc('\n', f) == EOF || fflush(f) != 0)
        note_failure(errno);
}

void report_line(const char *fmt, ...)
{
    if (report.json)
        return;
    va_list ap;
    va_start(ap, fmt);
    print_line(fmt, ap);
    va_end(ap);
}

void report_closing(const char *fmt, ...)
{
    if (report.json || report.quiet)
        return;
    va_list ap;
    va_start(ap, fmt);
    print_line(fmt, ap);
    va_end(ap);
}

/* What became of the guest, in words for a person. */
static const char *guest_words(enum guest_state state)
{
    switch (state) {
    case GUEST_UNTOUCHED:
        return "guest untouched";
    case GUEST_RUNNING:
        return "guest running";
    case GUEST_PAUSED:
        return "guest paused, as it was before";
    case GUEST_WAITING:
        return "guest waits for memory that is not in";
    case GUEST_ENDED:
        return "guest ended";
    case GUEST_NOT_STARTED:
        return "guest not started";
    case GUEST_UNKNOWN:
        break;
    }
    return "unknown whether the guest runs";
}

/* Red on a terminal, unless NO_COLOR (no-color.org) is set to anything but nothing. */
static bool wants_colour(void)
{
    const char *no = getenv("NO_COLOR");
    const char *term = getenv("TERM");
    return !(no && *no) && term && strcmp(term, "dumb") != 0 && isatty(STDERR_FILENO);
}

/* What to do next, where nobody who knew more has said it: by the cause alone. */
static const char *hint_of(const struct error *e)
{
    static const struct {
        int err;
        const char *hint;
    } causes[] = {
        {ENOSPC, "make room there"},
        {EDQUOT, "make room there, or have the quota raised"},
        {EACCES, "run vmsnap as root, or as a user who has that right"},
        {EPERM, "run vmsnap as root, or as a user who has that right"},
        {EROFS, "name a path on a file system that can be written"},
        {ENOENT, "check the path"},
        {ENOTDIR, "check the path"},
        {EISDIR, "name a file, not a directory"},
        {ENAMETOOLONG, "name a shorter path"},
        {EMFILE, "raise the limit of open files ('ulimit -n')"},
        {ENFILE, "the host has no more open files: raise fs.file-max, or end what holds them"},
        {ENOMEM, "free memory on the host or in this cgroup, or give fewer --threads"},
        {EIO, "look for the storage's errors in the kernel's log (dmesg)"},
    };
    for (size_t i = 0; !e->hint[0] && i < sizeof(causes) / sizeof(causes[0]); i++)
        if (causes[i].err == e->err)
            return causes[i].hint;
    return e->hint;
}

json_t *report_describe_error(const struct error *e)
{
    json_t *o = json_pack("{s:i, s:o, s:s, s:o}", "exit_code", e->exit_code, "message",
                          report_string(e->message), "guest_state", guest_state_name(e->guest),
                          "hint", report_string(hint_of(e)));
    if (o && e->vmm_pid)
        json_object_set_new(o, "vmm_pid", json_integer(e->vmm_pid));
    return o;
}

void report_error(const struct error *e, bool with_guest)
{
    if (report.json) {
        json_t *o = report_describe_error(e);
        print_object(stderr, "error", o);
        json_decref(o);
        return;
    }
    bool colour = wants_colour();
    bool guest = with_guest && e->exit_code != VMSNAP_EXIT_USAGE;
    fprintf(stderr, "%svmsnap: %serror:%s %s%s%s\n", isatty(STDERR_FILENO) ? "\r\033[K" : "",
            colour ? "\033[31m" : "", colour ? "\033[0m" : "", e->message, guest ? "; " : "",
            guest ? guest_words(e->guest) : "");
    static char last_hint[sizeof(e->hint)];
    const char *hint = hint_of(e);
    if (hint[0] && strcmp(hint, last_hint) != 0) /* of many errors of a kind once */
        fprintf(stderr, "vmsnap: hint: %s\n", hint);
    snprintf(last_hint, sizeof(last_hint), "%s", hint);
}

int report_finish(void)
{
    FILE *f = results();
    if (fflush(f) != 0 || ferror(f))
        note_failure(errno);
    return -report.failed;
}

/* Bytes of the UTF-8 character at `s` (RFC 3629: no overlong forms, no surrogates), 0 if there is
 * none. Stops at the terminating zero by itself: it is no continuation byte. */
static size_t utf8_length(const unsigned char *s)
{
    if (s[0] < 0x80)
        return 1;
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return 0;
    size_t len = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    for (size_t i = 1; i < len; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
        (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return len;
}

json_t *report_string(const char *text)
{
    json_t *whole = json_string(text);
    if (whole)
        return whole;
    char *out CLEANUP_FREE = malloc(3 * strlen(text) + 1);
    if (!out)
        return NULL;
    char *to = out;
    while (*text) {
        size_t len = utf8_length((const unsigned char *)text);
        memcpy(to, len ? text : "\xef\xbf\xbd", len ? len : 3);
        to += len ? len : 3;
        text += len ? len : 1;
    }
    *to = '\0';
    return json_string(out);
}
