/*
 * supervisor_watch.c - a guest that was given up, and whom somebody may still take over by hand
 * (--resume): the record in its VMM tells, so that who started us is not left with "served no more"
 * as the last word.
 */
#include "restore/supervisor_internal.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/restore_record.h"
#include "common/target/target.h"

#define LOOK_NS 1000000000ull

static bool look(const struct supervisor *s, struct restore_look *l)
{
    struct target t;
    if (target_open(&t, s->vmm, NULL))
        return false;
    int rc = restore_look(&t, l);
    target_close(&t);
    return rc == 0 && !supervisor_vmm_ended(s);
}

static void note_served(struct supervisor *s)
{
    s->by_other = true;
    log_warn("another vmsnap serves process %d", (int)s->vmm);
    s->o->report(s->o->opaque, "takeover",
                 json_pack("{s:i, s:b}", "vmm_pid", (int)s->vmm, "by_hand", 1));
}

static void note_complete(struct supervisor *s)
{
    s->complete = true;
    s->o->report(
        s->o->opaque, "summary",
        json_pack("{s:i, s:n, s:b}", "vmm_pid", (int)s->vmm, "complete_ns", "handed_over", 1));
    if (s->charge)
        s->charge->complete(s->charge->opaque);
}

/* Who came has gone too. */
static void note_unserved(struct supervisor *s)
{
    struct error e = {0};
    s->by_other = false;
    supervisor_explain_failure(s, &e);
    s->o->trouble(s->o->opaque, &e);
}

int supervisor_watch_given_up(struct supervisor *s)
{
    struct restore_look l;
    if (!s->given_up || s->complete || s->by_hand || supervisor_vmm_ended(s))
        return -1;
    int left_ms = clock_ms_until(s->next_ns);
    if (left_ms > 0)
        return left_ms;
    s->next_ns = clock_monotonic_ns() + LOOK_NS;
    if (look(s, &l)) {
        if (l.under_way && l.served && !s->by_other)
            note_served(s);
        else if (l.under_way && !l.served && s->by_other)
            note_unserved(s);
        else if (!l.under_way && s->is_recorded) /* else there is nothing that could tell */
            note_complete(s);
        s->is_recorded = l.under_way;
    }
    return s->complete ? 0 : clock_ms_until(s->next_ns);
}
