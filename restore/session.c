#include "restore/session.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/testhook.h"
#include "restore/explain.h"
#include "restore/memory/handoff.h"
#include "restore/memory/theirs.h"
#include "restore/memory/window.h"
#include "restore/supervised.h"

#define END_SHOWS_MS 500
#define MAX_COPIES 8    /* of the record, in a VMM */
#define LEARNED_MS 5000 /* the working set is written, or its file system hangs */
/* The one of an earlier run is read, or its file system hangs; faults are answered meanwhile. */
#define KNOWN_LATE_MS 500

/* Takes what an earlier run learned, if that is read within timeout_ms, and makes the plan; or
 * (last) without it. */
static void make_plan(struct session *s, int timeout_ms, bool last)
{
    struct workset learned = {0};
    struct error e = {0};
    if (!s->plan_is_due)
        return;
    int rc = s->known.shared ? workset_take(&learned, &s->known, timeout_ms, s->img, &e) : 0;
    if (rc == -EINPROGRESS && !last)
        return;
    s->plan_is_due = false;
    if (rc == -EINPROGRESS) {
        whole_file_end(&s->known);
        error_set(&e, VMSNAP_EXIT_FAILED, 0, "the storage does not answer");
    }
    if (rc && rc != -ENOENT)
        log_warn("what an earlier run learned is not used (--learn records it anew): %s",
                 e.message);
    if (prefetch_plan(&s->prefetch, s->img, &learned, true))
        log_warn("no memory to prefetch anything");
    log_info("%llu clusters learned and %llu of the hot list are brought in first",
             (unsigned long long)s->prefetch.n_learned,
             (unsigned long long)(s->prefetch.n - s->prefetch.n_learned));
    workset_free(&learned);
    prefetch_begin_reading(&s->prefetch);
}

void session_plan_prefetch(struct session *s, int wait_ms)
{
    if (!s->o->prefetch_hot || s->learn.img)
        return;
    s->plan_is_due = true;
    int rc = workset_begin(&s->known, s->img);
    if (rc)
        log_warn("what an earlier run learned is not used: can't start a process: %s",
                 strerror(-rc));
    make_plan(s, wait_ms, false);
}

uint64_t session_count_settled(const struct session *s)
{
    uint64_t n = 0;
    for (uint64_t i = 0; i < s->state.n_clusters; i++)
        n += page_state_get(&s->state, i) != CLUSTER_PENDING || page_state_discarded(&s->state, i);
    return n;
}

int session_serve(struct session *s, int uffd, bool takes_over, struct error *e)
{
    struct server_config config = {.uffd = uffd,
                                   .target = s->target,
                                   .img = s->img,
                                   .blocks = &s->blocks,
                                   .state = &s->state,
                                   .n_threads = s->o->n_threads,
                                   .prefetch = &s->prefetch,
                                   .learn = s->learn.img ? &s->learn : NULL,
                                   .fill = !s->o->no_fill,
                                   .untold = s->theirs && !theirs_tells_discards(s->theirs),
                                   .poison_damage = s->o->poison_damage,
                                   .bytes_per_s = s->o->bytes_per_s,
                                   .messages = record_messages(&s->record),
                                   .takes_over = takes_over};
    if (takes_over) {
        page_state_forgive(&s->state); /* else what is damaged would count as in */
        fill_progress_take_over(&s->progress, s->img, &s->state);
    }
    int rc = server_start(&s->server, &config, e);
    if (rc)
        return rc;
    make_plan(s, KNOWN_LATE_MS, true);
    return server_begin_prefetch(s->server, e);
}

/* ---- what is learned ---- */

/* Waits at most that long for the file. */
static void hear_of_learning(struct session *s, int timeout_ms)
{
    struct error e = {.guest = GUEST_RUNNING};
    enum learn_news news = learn_poll(&s->learn, timeout_ms, &e);
    if (news == LEARN_FAILED)
        s->o->trouble(s->o->opaque, &e);
    if (news == LEARN_KEPT)
        log_warn(
            "--learn: the VMM ended before its minute was over, and its guest had touched only "
            "%llu clusters: the working set of an earlier run, %llu, is kept (to begin anew "
            "remove the file beside the image)",
            (unsigned long long)atomic_load(&s->learn.n), (unsigned long long)s->learn.n_before);
    if (news == LEARN_WRITTEN) {
        log_info("%llu clusters learned", (unsigned long long)s->learn.n_written);
        supervised_tell_learned();
    }
}

/* Once it is over the file is written, and the rest comes in. */
static void follow_learning(struct session *s)
{
    if (s->learns && !learn_goes_on(&s->learn, clock_monotonic_ns())) {
        s->learns = false;
        learn_write(&s->learn);
        server_begin_fill(s->server);
    }
    hear_of_learning(s, 0);
}

/* ---- what is reported ---- */

static json_t *describe_summary(const struct session *s)
{
    struct server_stats stats = s->last;
    if (s->server)
        server_get_stats(s->server, &stats);
    const struct answer_counts *n = &stats.counts;
    json_t *o = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:i}",
        "launch_to_running_ns", (json_int_t)s->running_ns, "demand_faults",
        (json_int_t)stats.demand_faults, "fault_p50_ns",
        (json_int_t)histogram_quantile(&stats.faults, 0.5), "fault_p99_ns",
        (json_int_t)histogram_quantile(&stats.faults, 0.99), "fault_max_ns",
        (json_int_t)stats.faults.max_ns, "pages_on_demand", (json_int_t)n->pages_on_demand,
        "pages_prefetched", (json_int_t)n->pages_prefetched, "pages_ahead",
        (json_int_t)n->pages_ahead, "pages_filled", (json_int_t)n->pages_filled, "pages_discarded",
        (json_int_t)n->pages_discarded, "clusters_damaged", (json_int_t)n->clusters_damaged,
        "pages_poisoned", (json_int_t)n->pages_poisoned, "clusters_learned",
        (json_int_t)s->learn.n_written, "vmm_pid", (int)s->target->pid);
    json_t *accelerator = json_object_get(s->machine, "accelerator");
    if (o) {
        json_object_set_new(o, "complete_ns",
                            s->complete_ns ? json_integer((json_int_t)s->complete_ns)
                                           : json_null());
        if (accelerator)
            json_object_set(o, "accelerator", accelerator);
        json_object_set_new(o, "workset_clusters", json_integer((json_int_t)s->prefetch.n_learned));
        if (s->handed_over)
            json_object_set_new(o, "handed_over", json_true());
        clock_sync_add(s->clock, o);
    }
    return o;
}

/* Whether the guest's clock is set is known some time after the guest runs. */
static void report_clock(struct session *s)
{
    if (s->clock_reported || !clock_sync_is_over(s->clock))
        return;
    s->clock_reported = true;
    const struct clock_outcome outcome = clock_sync_outcome(s->clock);
    supervised_tell_clock(&outcome);
    json_t *o = json_object();
    clock_sync_add(s->clock, o);
    s->o->report(s->o->opaque, "clock", o);
}

/* Waits for the clock, if it is to be set: at most ten seconds, and not for a
 * VMM that has ended. */
void session_summarize(struct session *s)
{
    if (s->summarized)
        return;
    hear_of_learning(s, LEARNED_MS);
    json_t *o = describe_summary(s);
    report_clock(s);
    s->o->report(s->o->opaque, "summary", o);
    s->summarized = true;
    if (s->server) {
        struct server_stats stats;
        server_get_stats(s->server, &stats);
        explain_stages(&stats);
    }
}

/* ---- the guest runs ---- */

static void report_troubles(struct session *s)
{
    struct error e;
    while (server_take_error(s->server, &e))
        s->o->trouble(s->o->opaque, &e);
}

static bool shows_its_end(const struct session *s, int timeout_ms)
{
    struct pollfd p = {.fd = s->target->pidfd, .events = POLLIN};
    return poll(&p, 1, timeout_ms) > 0;
}

/* With a wrapper of its own, that one too. */
static bool vmm_ended(const struct session *s)
{
    return s->vmm ? vmm_reap(s->vmm) : shows_its_end(s, 0);
}

/* From here on it is known whether the VMM has the record. */
static void end_leaving(struct session *s)
{
    if (s->leaving)
        s->record.target_fd = record_end_leaving(s->leaving);
    s->leaving = NULL;
}

int session_close_there(struct session *s, struct error *e)
{
    int rc = 0;
    end_leaving(s);
    if (s->target_fd >= 0 && !s->theirs)
        rc = handoff_close_fd(s->target, s->target_fd, HANDOFF_UFFD, s->o->timeout_ms, e);
    if (rc == 0)
        record_uffd_closed(&s->record);
    TESTHOOK_POINT("restore-closing");
    if (rc == 0)
        rc = handoff_close_fd(s->target, s->record.target_fd, RECORD_LINK, s->o->timeout_ms, e);
    for (int i = 0; i < MAX_COPIES && rc == 0 && record_is_theirs(&s->record); i++) {
        s->record.target_fd = record_find_there(&s->record, s->target);
        if (s->record.target_fd < 0)
            break;
        rc = handoff_close_fd(s->target, s->record.target_fd, RECORD_LINK, s->o->timeout_ms, e);
    }
    return rc;
}

/* The registration is gone: the guest's memory is its own. */
static void hand_off(struct session *s, struct handoff_collapse *collapse)
{
    struct error e = {.guest = GUEST_RUNNING};
    record_released(&s->record);
    window_close_all(&s->blocks); /* nobody but the VMM has its memory */
    TESTHOOK_POINT("restore-released");
    int rc = session_close_there(s, &e);
    /* Never fails the restore: all that is left is an idle descriptor in the VMM. A VMM on its way
     * out refuses what is asked of it before its end shows. */
    if (rc && !shows_its_end(s, END_SHOWS_MS)) {
        error_wrap(&e, "the VMM keeps an idle userfaultfd");
        s->o->trouble(s->o->opaque, &e);
    }
    s->handed_off = true;
    supervised_tell_complete();
    progress_finish(&s->progress.line);
    s->progress.line.redraw = s->progress.periodic = false; /* only if asked */
    session_summarize(s);
    handoff_collapse_begin(collapse, s->target, s->img, &s->blocks);
}

/* Our own doing, and what becomes of its faults: what others ask of the VMM is not seen. */
static const char *guest_state_now(const struct session *s, const struct server_stats *stats)
{
    bool runs = record_get_guest(&s->record) == RECORD_GUEST_LET_RUN;
    return guest_state_name(stats->guest_waits && !s->complete_ns ? GUEST_WAITING
                            : s->theirs                           ? GUEST_UNKNOWN
                            : runs                                ? GUEST_RUNNING
                                                                  : GUEST_PAUSED);
}

static void show_progress(struct session *s)
{
    struct server_stats stats;
    server_get_stats(s->server, &stats);
    s->progress.on_demand = s->learns || s->o->no_fill;
    if (!fill_progress_update(&s->progress, &stats, s->complete_ns > 0))
        return;
    json_t *o = fill_progress_describe(&s->progress, &stats);
    if (o) {
        json_object_set_new(o, "elapsed_ns",
                            json_integer((json_int_t)(clock_monotonic_ns() - s->began_ns)));
        json_object_set_new(o, "vmm_pid", json_integer(s->target->pid));
        json_object_set_new(o, "guest_state", json_string(guest_state_now(s, &stats)));
    }
    s->o->report(s->o->opaque, "progress", o);
}

/* Acts on the server's stage. True while huge pages are left to collapse. */
static bool follow_server(struct session *s, struct handoff_collapse *collapse)
{
    report_troubles(s);
    switch (server_stage(s->server)) {
    case SERVER_FILLED:
        if (s->complete_ns)
            return false;
        s->complete_ns = clock_monotonic_ns() - s->began_ns;
        TESTHOOK_POINT("restore-filled");
        server_release(s->server);
        return false;
    case SERVER_RELEASED:
        if (!s->handed_off) {
            hand_off(s, collapse);
            TESTHOOK_POINT("restore-handed-off");
        }
        return handoff_collapse_step(collapse);
    default:
        return false;
    }
}

/* ---- handing over ---- */

/* Who asked did not come, or is gone before he was through. */
static void serve_again(struct session *s)
{
    struct error e = {.guest = GUEST_WAITING};
    int uffd =
        s->theirs ? fcntl(s->theirs, F_DUPFD_CLOEXEC, 0) : target_get_fd(s->target, s->target_fd);
    int rc = uffd < 0 ? error_set(&e, VMSNAP_EXIT_FAILED, -uffd,
                                  "can't get the VMM's userfaultfd, to serve it again")
                      : session_serve(s, uffd, true, &e);
    if (rc == 0) {
        if (!s->learns)
            server_begin_fill(s->server);
        return;
    }
    if (supervised_tell_unserved()) {
        log_warn("process %d: %s: another server is due", (int)s->target->pid, e.message);
        _exit(VMSNAP_EXIT_FAILED); /* as if killed: the next one finds all it needs */
    }
    error_hint(&e, "'vmsnap restore --resume %d [IMAGE]' goes on", (int)s->target->pid);
    s->o->trouble(s->o->opaque, &e);
    server_stop(s->server);
    s->server = NULL;
    s->unserved = true;
    record_close(&s->record); /* whoever comes can have it */
}

/*
 * Somebody has a sound copy of the image and asks for the guest ("--resume PID IMAGE"). He gets it
 * if this one has become of no use to us.
 */
static void answer_asker(struct session *s)
{
    if (!server_needs_image(s->server)) {
        record_refuse(&s->record);
        return;
    }
    server_get_stats(s->server, &s->last);
    server_stop(s->server);
    s->server = NULL;
    TESTHOOK_POINT("handing-over");
    s->handed_over = record_hand_over(&s->record);
    if (!s->handed_over) {
        serve_again(s);
        return;
    }
    log_warn("another vmsnap serves process %d from here on", (int)s->target->pid);
}

/*
 * Somebody else serves the guest. If he dies before he is through we do it again, as well as we
 * can; else there is only the VMM's end to wait for, if anybody wants to know of it. True: serve.
 */
static bool stand_by(struct session *s)
{
    progress_finish(&s->progress.line);
    while (!vmm_ended(s)) {
        if (!s->record.header || record_is_released(&s->record)) {
            window_close_all(&s->blocks); /* nobody but the VMM has its memory */
            if (!s->stays)
                return false;
        } else if (!shows_its_end(s, 0) && record_take_back(&s->record)) {
            s->handed_over = false;
            serve_again(s);
            if (s->server)
                return true;
        }
        if (shows_its_end(s, 1000))
            usleep(20000); /* only its wrapper is waited for */
    }
    return false;
}

static void serve_to_the_end(struct session *s)
{
    struct handoff_collapse collapse = {0};
    bool prefetched = false;
    int vmm_fd = s->target->pidfd;
    for (;;) {
        server_clear_event(s->server);
        bool more = follow_server(s, &collapse);
        follow_learning(s);
        if (!prefetched && server_prefetched(s->server)) {
            prefetched = true;
            TESTHOOK_POINT("restore-prefetched");
        }
        report_clock(s);
        if (vmm_ended(s))
            return;
        if (!s->stays && s->handed_off && !more)
            return;
        struct pollfd fds[3] = {{.fd = server_event_fd(s->server), .events = POLLIN},
                                {.fd = vmm_fd, .events = POLLIN},
                                {.fd = supervised_line()}};
        /* With the VMM gone only its wrapper is waited for. */
        bool waiting_for_wrapper = fds[1].fd < 0;
        poll(fds, 3, more ? 0 : waiting_for_wrapper ? 20 : s->handed_off ? 1000 : 200);
        if (fds[1].revents)
            vmm_fd = -1;
        if (fds[2].revents)
            supervised_note_loss();
        show_progress(s);
        if (record_is_asked_for(&s->record))
            answer_asker(s);
        if (!s->server && !stand_by(s))
            return;
    }
}

void session_begin(struct session *s)
{
    if (s->begun)
        return;
    s->begun = true;
    s->learns = s->learn.img;
    if (s->learns)
        learn_guest_runs(&s->learn);
    else
        server_begin_fill(s->server);
    fill_progress_start(&s->progress, s->img, s->shows_progress, !s->o->no_fill, s->o->bytes_per_s);
}

void session_accompany(struct session *s)
{
    session_begin(s);
    serve_to_the_end(s);
    if (!s->handed_over)        /* what came after that is not known */
        learn_write(&s->learn); /* unless it was over */
    progress_finish(&s->progress.line);
    session_summarize(s);
}

int session_explain_end(const struct session *s, struct error *e)
{
    int pid = (int)s->target->pid;
    if (s->handed_over) {
        error_set(e, VMSNAP_EXIT_BUSY, 0, "another vmsnap has taken over process %d", pid);
        return -EBUSY;
    }
    if (!s->unserved)
        return 0;
    error_set(e, VMSNAP_EXIT_FAILED, 0, "process %d is served no more", pid);
    error_hint(e, "'vmsnap restore --resume %d [IMAGE]' goes on", pid);
    return -EIO;
}

void session_close(struct session *s)
{
    clock_sync_end(s->clock);
    server_stop(s->server);
    window_close_all(&s->blocks);
    learn_free(&s->learn);
    whole_file_end(&s->known);
    prefetch_free(&s->prefetch);
    blocks_free(&s->blocks);
    end_leaving(s);
    if (s->record.header)
        record_close(&s->record);
    if (s->img)
        image_close(s->img);
}
