/*
 * peer_serve.c - a server of a VM that was handed over: the first one and each that follows it do
 * the same. All of it stands ready in their supervisor (peer.c) but for the record's content, which
 * tells what servers before have done.
 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/testhook.h"
#include "restore/listen/peer_internal.h"
#include "restore/record.h"
#include "restore/session.h"
#include "restore/supervised.h"

static void report_running(const struct session *s, bool resumed)
{
    uint64_t now = clock_realtime_ns(), instant = image_get_trailer(s->img)->instant_ns;
    json_t *o = json_pack("{s:I, s:i, s:I, s:s}", "launch_to_running_ns", (json_int_t)s->running_ns,
                          "vmm_pid", (int)s->target->pid, "clock_behind_ns",
                          (json_int_t)(now > instant ? now - instant : 0), "guest_state",
                          guest_state_name(GUEST_UNKNOWN)); /* its owner lets it run */
    if (o && resumed) {
        json_object_set_new(o, "resumed", json_true());
        json_object_set_new(o, "clock_behind_ns", json_null()); /* it has run since */
    }
    s->o->report(s->o->opaque, "running", o);
}

static int enter_record(struct session *s, const struct peer *p, struct error *e)
{
    int rc = record_enter(&s->record, p->record_fd, &p->target, p->c->img, p->c->image_path,
                          &s->blocks, e);
    if (rc == 0)
        record_states(&s->record, image_get_trailer(s->img)->n_clusters, &s->state);
    return rc;
}

/* The first VM to learn does it for all. Its guest may wait: the listener has tried the file. */
static void begin_learning(struct session *s, const struct peer *p)
{
    struct error e = {0};
    if (!p->o.learn || atomic_exchange(&p->c->roll->learner, true))
        return;
    if (learn_begin_asked(&s->learn, s->img, p->c->n_learned_before, &e))
        s->o->trouble(s->o->opaque, &e);
}

static int serve(struct session *s, const struct peer *p, bool is_new, struct error *e)
{
    if (is_new)
        begin_learning(s, p);
    session_plan_prefetch(s, 0);
    int uffd = fcntl(p->uffd, F_DUPFD_CLOEXEC, 0);
    if (uffd < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "no more descriptors");
    record_set_guest(&s->record, RECORD_GUEST_LET_RUN);
    record_ready(&s->record, -1);
    TESTHOOK_POINT("listen-recorded");
    return session_serve(s, uffd, !is_new, e);
}

void peer_note_complete(const struct peer *p)
{
    if (!atomic_exchange(&p->c->roll->complete[p->place], true))
        atomic_fetch_add(&p->c->roll->n_complete, 1);
}

/* All memory was in already: only the record is left. */
static int clear_up(struct session *s, const struct peer *p, struct error *e)
{
    int rc = session_close_there(s, e); /* finds it */
    s->complete_ns = clock_monotonic_ns() - s->began_ns;
    peer_note_complete(p);
    if (rc == 0)
        session_summarize(s);
    return rc;
}

static int serve_to_the_end(struct session *s, struct peer *p, struct error *e)
{
    int rc = enter_record(s, p, e);
    if (rc)
        return rc;
    if (record_is_released(&s->record))
        return clear_up(s, p, e);
    bool is_new = record_is_new(&s->record);
    if (!is_new)
        s->began_ns = clock_monotonic_ns();
    rc = serve(s, p, is_new, e);
    if (rc == 0)
        rc = record_leave(&s->leaving, s->target, p->record_fd, e);
    if (rc)
        return rc;
    s->running_ns = clock_monotonic_ns() - s->began_ns;
    supervised_tell_serves(session_count_settled(s));
    TESTHOOK_POINT("listen-serving");
    report_running(s, !is_new);
    session_accompany(s);
    if (s->handed_over ? record_is_released(&s->record) : s->complete_ns > 0)
        peer_note_complete(p);
    return session_explain_end(s, e);
}

int peer_serve(void *opaque, struct error *e)
{
    struct peer *p = opaque;
    struct session s = {.o = &p->o,
                        .img = p->c->img,
                        .target = &p->target,
                        .blocks = p->blocks,
                        .began_ns = p->began_ns,
                        .target_fd = -1,
                        .theirs = p->uffd};
    e->guest = GUEST_WAITING;
    if (p->mailbox.connection >= 0)
        close(p->mailbox.connection); /* the supervisor's: its end is the VMM's to notice */
    int rc = serve_to_the_end(&s, p, e);
    session_close(&s);
    return rc;
}
