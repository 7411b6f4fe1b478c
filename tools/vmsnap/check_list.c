#include "tools/vmsnap/check_list.h"

#include <stdarg.h>
#include <stdio.h>

#include "tools/vmsnap/report.h"

#define REASON_BYTES 1280

enum verdict { OK, NOTE, REFUSED };

/* One item: how it is, and in words of the form `fmt` why. */
static void say(struct check_list *list, enum verdict verdict, const char *name, const char *allow,
                const char *fmt, va_list ap)
{
    static const char *const marks[] = {[OK] = "yes", [NOTE] = "note", [REFUSED] = "NO"};
    char reason[REASON_BYTES];
    vsnprintf(reason, sizeof(reason), fmt, ap);
    list->n_items++;
    report_line("%-4s %-24s %s%s%s%s", marks[verdict], name, reason, allow ? " (--allow " : "",
                allow ? allow : "", allow ? ")" : "");
    json_t *o = json_pack("{s:s, s:b, s:b, s:o}", "name", name, "ok", verdict == OK, "refused",
                          verdict == REFUSED, "reason", report_string(reason));
    if (o)
        json_object_set_new(o, "allow", allow ? json_string(allow) : json_null());
    report_object("item", o);
}

void check_ok(struct check_list *list, const char *name, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say(list, OK, name, NULL, fmt, ap);
    va_end(ap);
}

void check_note(struct check_list *list, const char *name, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say(list, NOTE, name, NULL, fmt, ap);
    va_end(ap);
}

/* Exit codes from the worst down: what no option and no other VM helps against comes first. */
static int badness(enum vmsnap_exit code)
{
    static const enum vmsnap_exit order[] = {
        VMSNAP_EXIT_KERNEL, VMSNAP_EXIT_IMAGE,   VMSNAP_EXIT_MISMATCH, VMSNAP_EXIT_VMM,
        VMSNAP_EXIT_TARGET, VMSNAP_EXIT_TIMEOUT, VMSNAP_EXIT_BUSY,     VMSNAP_EXIT_HAZARD};
    const int n = (int)(sizeof(order) / sizeof(order[0]));
    for (int i = 0; i < n; i++)
        if (order[i] == code)
            return n - i;
    return code == VMSNAP_EXIT_DONE ? 0 : n + 1;
}

void check_refused(struct check_list *list, const char *name, enum vmsnap_exit exit_code,
                   const char *allow, const char *fmt, ...)
{
    list->n_refused++;
    if (badness(exit_code) > badness(list->exit_code))
        list->exit_code = exit_code;
    va_list ap;
    va_start(ap, fmt);
    say(list, REFUSED, name, allow, fmt, ap);
    va_end(ap);
}

void check_failed(struct check_list *list, const char *name, const struct error *e)
{
    int code = e->exit_code ? e->exit_code : VMSNAP_EXIT_FAILED;
    check_refused(list, name, (enum vmsnap_exit)code, NULL, "%s%s%s", e->message,
                  e->hint[0] ? "; " : "", e->hint);
}

int check_finish(const struct check_list *list)
{
    report_object("summary",
                  json_pack("{s:b, s:I, s:I, s:i}", "ok", list->n_refused == 0, "items",
                            (json_int_t)list->n_items, "refused", (json_int_t)list->n_refused,
                            "exit_code", (int)list->exit_code));
    if (list->n_refused == 0)
        report_closing("nothing that was looked at stands in the way");
    else
        report_closing("%zu of %zu items stand%s in the way", list->n_refused, list->n_items,
                       list->n_refused == 1 ? "s" : "");
    return list->exit_code;
}
