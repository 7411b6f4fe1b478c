/*
 * restore.c - the sequence of a restore.
 *
 *     open the image (all its metadata is checked)       nothing was started yet: a refusal costs
 *     plan the launch, look for reasons to refuse        nothing
 *     start the VMM; it connects to our private socket
 *     compare the machine; match the memory blocks       the guest can't run: -S -incoming defer
 *     make its memory ours (attach.c)
 *     serve faults (serve.c), prefetch                   from here on its memory is right
 *     load the device state
 *     let the guest run: "running"
 *     fill; unregister; hand off: "summary"
 *     wait for the VMM: "exit"
 *
 * Threads: the main thread runs the sequence; signals.c has one, the server one, the fill workers
 * the rest. Until the guest runs, any failure ends the VMM that was started. Afterwards none does:
 * a page that can't be served makes the guest wait.
 *
 * If this process is killed, the VMM waits at the next absent page: its own copy of the userfaultfd
 * keeps the memory registered, so that it never reads zeros instead. It was forked from a
 * supervisor (supervisor.c), which then starts another one (resume.c).
 */
#include "restore/restore.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/image/reader.h"
#include "common/kernel.h"
#include "common/log.h"
#include "common/progress.h"
#include "common/qmp.h"
#include "common/testhook.h"
#include "restore/launch/detach.h"
#include "restore/launch/image_owner.h"
#include "restore/launch/pidfile.h"
#include "restore/launch/vmm.h"
#include "restore/launch/vmm_kind.h"
#include "restore/memory/attach.h"
#include "restore/memory/window.h"
#include "restore/serve/damage.h"
#include "restore/session.h"
#include "restore/signals.h"
#include "restore/supervised.h"
#include "restore/supervisor.h"

#define PLAN_MS 250 /* for what an earlier run learned to be read, while the VMM starts */

struct restore {
    const struct restore_options *o;
    json_t *description;
    const struct vmm_kind *kind;
    struct relaunch launch;
    struct vmm vmm;
    struct signals *signals;
    struct qmp *qmp;
    json_t *actual; /* the machine that was started */
    struct session session;
    struct pidfile pidfile;
    bool vmm_prepared;
};

/* ---- before anything is started ---- */

static int open_image(struct restore *r, struct error *e)
{
    int rc = image_open(&r->session.img, r->o->image_path, e);
    if (rc)
        return rc;
    json_error_t why;
    r->description = json_loads(image_description(r->session.img), 0, &why);
    if (json_is_object(r->description)) {
        r->kind = vmm_kind_of(r->description);
        return 0;
    }
    error_set(e, VMSNAP_EXIT_IMAGE, EBADMSG, "%s: its description can't be read (%s)",
              r->o->image_path, r->description ? "no object" : why.text);
    return -EBADMSG;
}

static int plan(struct restore *r, struct error *e)
{
    int rc = vmm_kind_check_started(r->description, r->o->image_path, e);
    if (rc == 0)
        rc = kernel_require(e);
    if (rc == 0)
        rc = damage_check_kernel(r->o->poison_damage, e);
    if (rc == 0)
        rc = attach_check_kernel(r->session.img, e);
    if (rc == 0 && !r->o->vmm_argv)
        rc = image_owner_check(image_fd(r->session.img), r->o->image_path, e);
    if (rc == 0)
        rc = r->kind->plan(&r->launch, r->description, r->o->vmm_argv, e);
    if (rc == 0)
        rc = r->kind->refuse(&r->launch, r->description, r->o->allowed, relaunch_fd_inherited, e);
    if (rc == 0 && r->o->pidfile)
        rc = pidfile_check(r->o->pidfile, e);
    if (rc == 0 && r->o->learn)
        rc = learn_begin(&r->session.learn, r->session.img, e);
    return rc;
}

/* ---- the VMM, stopped ---- */

static int start_vmm(struct restore *r, struct error *e)
{
    int rc = vmm_prepare(&r->vmm, e);
    if (rc)
        return rc;
    r->vmm_prepared = true;
    rc = signals_start(&r->signals, &r->vmm, e);
    if (rc == 0)
        rc = r->kind->add_private(&r->launch, r->vmm.private.socket_path, e);
    if (rc == 0)
        rc = vmm_start(&r->vmm, &r->launch, r->o->detach, e);
    if (rc)
        return rc;
    TESTHOOK_POINT("restore-launched");
    session_plan_prefetch(&r->session, PLAN_MS); /* it takes its time to connect anyway */
    int fd = -1;
    rc = vmm_accept(&r->vmm, &fd, r->o->timeout_ms, e);
    if (rc)
        return rc;
    rc = qmp_attach(&r->qmp, fd, r->o->timeout_ms, e);
    if (rc)
        close(fd);
    return rc;
}

static int compare_machine(struct restore *r, struct error *e)
{
    return r->kind->compare(&r->actual, r->description, r->qmp, &r->vmm.target, r->o->timeout_ms,
                            e);
}

/* Only KVM makes a machine check of it. */
static void warn_of_poison(const struct restore *r)
{
    const char *accelerator = json_string_value(json_object_get(r->actual, "accelerator"));
    if (r->o->poison_damage && !(accelerator && strcmp(accelerator, "kvm") == 0))
        log_warn("where the image is damaged --on-damage poison ends this VMM by SIGBUS once its "
                 "guest touches that: it is a machine check for the guest with KVM only");
}

/* What the status of a VMM that was ended so does not tell. */
static void explain_end(const struct restore *r, int vmm_status)
{
    struct server_stats stats = r->session.last;
    if (r->session.server)
        server_get_stats(r->session.server, &stats);
    if (vmm_status != 128 + SIGBUS || stats.counts.pages_poisoned == 0)
        return;
    struct error e = {.guest = GUEST_ENDED};
    error_set(&e, VMSNAP_EXIT_IMAGE, 0,
              "the VMM was ended by SIGBUS: it touched memory that is poisoned, since the image is "
              "damaged there");
    error_hint(&e, "start it again from a sound copy of the image");
    r->o->trouble(r->o->opaque, &e);
}

static int match_blocks(struct restore *r, struct error *e)
{
    struct region_set found = {0};
    warn_of_poison(r);
    int rc = r->kind->find_memory(&found, r->actual, r->qmp, &r->vmm.target, r->o->timeout_ms, e);
    if (rc)
        return rc;
    rc = blocks_match(&r->session.blocks, r->session.img, found.items, found.count, e);
    region_set_free(&found);
    return rc;
}

static int make_record(struct restore *r, struct error *e)
{
    struct session *s = &r->session;
    s->target = &r->vmm.target;
    window_open_all(&s->blocks, s->target);
    int rc = record_create(&s->record, s->target, s->img, r->o->image_path, &s->blocks,
                           r->o->timeout_ms, e);
    if (rc == 0)
        record_states(&s->record, image_get_trailer(s->img)->n_clusters, &s->state);
    return rc;
}

static int attach_and_serve(struct restore *r, struct error *e)
{
    struct session *s = &r->session;
    struct attach a = {.target = s->target,
                       .img = s->img,
                       .blocks = &s->blocks,
                       .state = &s->state,
                       .timeout_ms = r->o->timeout_ms};
    int rc = attach_memory(&a, e);
    if (rc)
        return rc;
    s->target_fd = a.target_fd;
    record_ready(&s->record, a.target_fd);
    return session_serve(s, a.uffd, false, e);
}

static int load(struct restore *r, struct error *e)
{
    int rc =
        r->kind->load(r->qmp, &r->vmm.target, r->session.img, r->description, r->o->timeout_ms, e);
    if (rc == 0)
        TESTHOOK_POINT("restore-state-loaded");
    return rc;
}

static bool leaves_paused(const struct restore *r)
{
    return r->o->paused || !r->launch.resumes;
}

static int write_pidfile(struct restore *r, struct error *e)
{
    return r->o->pidfile ? pidfile_write(&r->pidfile, r->o->pidfile, &r->vmm.target, e) : 0;
}

static int let_run(struct restore *r, struct error *e)
{
    supervised_tell_lives(&r->vmm, qmp_fd(r->qmp), !leaves_paused(r),
                          relaunch_uses_terminal(&r->launch));
    int rc = write_pidfile(r, e);
    if (rc)
        return rc;
    vmm_let_live(&r->vmm);
    signals_guest_runs(r->signals);
    TESTHOOK_POINT("restore-let-live");
    if (!leaves_paused(r))
        rc = r->kind->resume(r->qmp, r->o->timeout_ms, e);
    if (rc == 0) {
        record_set_guest(&r->session.record,
                         leaves_paused(r) ? RECORD_GUEST_LEFT_PAUSED : RECORD_GUEST_LET_RUN);
        supervised_tell_runs();
    }
    r->session.running_ns = clock_monotonic_ns() - r->vmm.launched_ns;
    return rc;
}

/* Once the guest runs: its agent can't answer before. */
static void sync_clock(struct restore *r)
{
    struct error why = {0};
    int fd = -1,
        timeout_ms = r->o->timeout_ms < CLOCK_SYNC_MAX_MS ? r->o->timeout_ms : CLOCK_SYNC_MAX_MS;
    if (leaves_paused(r))
        error_set(&why, VMSNAP_EXIT_TARGET, EAGAIN, "the guest is paused");
    else if (!r->kind->open_agent)
        error_set(&why, VMSNAP_EXIT_TARGET, EOPNOTSUPP, "this VMM has no guest agent");
    else if (r->kind->open_agent(&fd, r->actual, r->qmp, &r->vmm.target, timeout_ms, &why))
        fd = -1;
    r->session.clock = clock_sync_start(fd, timeout_ms, &why);
}

/* ---- what is reported ---- */

static void add_copy(json_t *to, const char *key, const json_t *from)
{
    json_t *v = json_object_get(from, key);
    if (v)
        json_object_set(to, key, v);
}

static json_t *describe_running(const struct restore *r)
{
    uint64_t now = clock_realtime_ns(), instant = image_get_trailer(r->session.img)->instant_ns;
    json_t *o = json_pack("{s:I, s:i, s:I, s:s}", "launch_to_running_ns",
                          (json_int_t)r->session.running_ns, "vmm_pid", (int)r->vmm.target.pid,
                          "clock_behind_ns", (json_int_t)(now > instant ? now - instant : 0),
                          "guest_state", leaves_paused(r) ? "paused" : "running");
    add_copy(o, "accelerator", r->actual);
    add_copy(o, "generation_id_renewed", r->actual);
    add_copy(o, "vm_name", r->description);
    return o;
}

/* ---- the whole ---- */

static int bring_up(struct restore *r, struct error *e)
{
    static const struct {
        const char *what;
        int (*run)(struct restore *r, struct error *e);
    } steps[] = {
        {"image opened", open_image},
        {"launch planned", plan},
        {"VMM started", start_vmm},
        {"machine compared", compare_machine},
        {"memory blocks matched", match_blocks},
        {"record made", make_record},
        {"memory attached", attach_and_serve},
        {"device state loaded", load},
        {"running", let_run},
    };
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        uint64_t began_ns = clock_monotonic_ns();
        int rc = steps[i].run(r, e);
        log_debug("%s: %" PRIu64 " us", steps[i].what, (clock_monotonic_ns() - began_ns) / 1000);
        progress_answer("the guest does not run yet; the VMM comes up");
        int sig = signals_caught(r->signals);
        if (sig) {
            e->hint[0] = '\0';
            return error_set(e, (enum vmsnap_exit)(128 + sig), EINTR, "interrupted by signal %d",
                             sig);
        }
        if (rc)
            return rc;
    }
    TESTHOOK_POINT("restore-running");
    if (r->o->sync_clock)
        sync_clock(r);
    return 0;
}

/* A failure before the guest runs: says whether the VMM's end is the cause, and ends it. */
static void give_up(struct restore *r, struct error *e)
{
    bool broken_off = e->err == EPIPE || e->err == ECONNRESET || e->err == ESRCH;
    if (r->vmm.has_target && broken_off)
        vmm_explain_end(&r->vmm, e);
    if (r->vmm_prepared)
        vmm_end(&r->vmm);
    pidfile_remove(&r->pidfile);
    e->guest = GUEST_NOT_STARTED;
}

static void tear_down(struct restore *r)
{
    session_close(&r->session);
    if (r->vmm_prepared)
        vmm_leave(&r->vmm);
    signals_stop(r->signals);
    if (r->qmp)
        qmp_close(r->qmp);
    relaunch_free(&r->launch);
    json_decref(r->actual);
    json_decref(r->description);
}

/* The guest runs: everything up to the VMM's end. */
static void accompany(struct restore *r)
{
    struct session *s = &r->session;
    qmp_close(r->qmp);
    r->qmp = NULL;
    s->vmm = &r->vmm;
    s->machine = r->actual;
    s->began_ns = r->vmm.launched_ns;
    s->stays = !r->o->detach;
    s->shows_progress = r->o->progress && !relaunch_uses_terminal(&r->launch);
    session_accompany(s);
}

static int run_foreground(struct restore *r, int *vmm_status, struct error *e)
{
    int rc = bring_up(r, e);
    if (rc) {
        give_up(r, e);
    } else {
        r->o->report(r->o->opaque, "running", describe_running(r));
        accompany(r);
        pidfile_remove(&r->pidfile);
        *vmm_status = vmm_exit_status(&r->vmm);
        explain_end(r, *vmm_status);
        r->o->report(r->o->opaque, "exit", json_pack("{s:i}", "exit_status", *vmm_status));
    }
    tear_down(r);
    return rc;
}

/* In the server's process. */
static _Noreturn void run_server(struct restore *r, int fd)
{
    struct error e = {0};
    int rc = bring_up(r, &e);
    json_t *running = rc ? NULL : describe_running(r);
    if (rc == 0)
        session_begin(&r->session);
    clock_sync_add(r->session.clock, running);
    if (rc == 0 && detach_tell_running(fd, running)) {
        /* Whoever wanted it is gone, and nobody knows of this VM. */
        rc = error_set(&e, VMSNAP_EXIT_FAILED, EPIPE, "the caller has gone away");
        fd = -1;
    }
    if (rc) {
        give_up(r, &e);
        if (fd >= 0)
            detach_tell_error(fd, &e);
        _exit(e.exit_code);
    }
    supervised_tell_told();
    r->o->detached(r->o->opaque);
    r->o->report(r->o->opaque, "running", running);
    accompany(r);
    if (r->vmm.vmm_status != -1)
        explain_end(r, vmm_exit_status(&r->vmm));
    tear_down(r);
    pidfile_stay(&r->pidfile);
    _exit(0);
}

int restore_run(const struct restore_options *options, int *vmm_status, struct error *e)
{
    struct restore r = {.o = options, .session = {.o = options}};
    int fd = -1, rc = 0;
    json_t *running;
    if (options->detach && !detach_fork(&fd, &running, &rc, e)) {
        if (rc == 0)
            options->report(options->opaque, "running", running);
        *vmm_status = 0;
        return rc;
    }
    if (!supervisor_begin(options, fd, vmm_status, &rc, e))
        return rc;
    if (options->detach)
        run_server(&r, fd);
    return run_foreground(&r, vmm_status, e);
}

int restore_print_command(const char *image_path, char **line, struct error *e)
{
    struct restore_options o = {.image_path = image_path};
    struct restore r = {.o = &o, .session = {.o = &o}};
    int rc = open_image(&r, e);
    if (rc == 0)
        rc = vmm_kind_check_started(r.description, image_path, e);
    if (rc == 0)
        rc = r.kind->plan(&r.launch, r.description, NULL, e);
    if (rc == 0) {
        *line = relaunch_quote_start(&r.launch);
        if (!*line)
            rc = error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "no memory for the command line");
    }
    tear_down(&r);
    return rc;
}
