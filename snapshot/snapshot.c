/*
 * Theory of operation
 *
 * The calling process becomes the guardian (guardian.c), a child does the work in five steps:
 *
 *   attach   a userfaultfd is made inside the VM by an injected system call and fetched; only we
 *            hold it, so that our death frees the guest. Memory is registered, the fault thread
 *            serves. Nothing is protected yet.
 *   live     where it pays, memory is protected while the guest runs (live.h), until what it has
 *            written since is little; the VM's disks are synced.
 *   pause    stop, save the device state, change phase, protect the rest, cont. This is the
 *            instant. The fault thread has been serving since before: the VMM's main loop itself
 *            may write guest memory and must never wait for us waiting for it.
 *   capture  faults and sweep save every cluster; compressors and the sink follow at their pace.
 *            When all is saved, protection and registration go, and the guest is free of us.
 *   finish   what is still queued is compressed and written, sections and trailer follow, and
 *            only then the file gets its name. Meanwhile, and if need be after that, huge pages
 *            that were split are put together again (huge.h).
 *
 * Every failure goes through give_up(): the guest is freed first, then resumed if it was paused,
 * then the rest is taken down; nothing is published.
 */
#include "snapshot/snapshot.h"

#include <errno.h>
#include <malloc.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "common/clock.h"
#include "common/json_text.h"
#include "common/kernel.h"
#include "common/log.h"
#include "common/progress.h"
#include "common/testhook.h"
#include "snapshot/job.h"
#include "snapshot/memory/arm.h"

#define TICK_MS 200
#define HANG_UP_MS 500
/* Of --buffer an eighth goes to write buffers, the rest to page buffers; a quarter of those is
 * kept for faults. */
#define WRITE_BUFFER_SHARE 8
#define FAULT_SHARE 4
#define MIN_PAGE_BUFFERS 128u /* a reserve of 2 MiB */

uint64_t snapshot_min_buffer(void)
{
    return (uint64_t)SINK_MIN_BUFFERS * SINK_BUFFER_BYTES +
           (uint64_t)MIN_PAGE_BUFFERS * FAULT_SHARE * IMAGE_CLUSTER_BYTES;
}

/* ---- prepare: everything that can fail for reasons of our own, before the VM is touched ---- */

static int open_output(struct job *j, struct error *e)
{
    const struct snapshot_options *o = j->options;
    struct output_options out = {
        .image_path = o->image_path, .overwrite = o->overwrite, .bwlimit = o->bwlimit};
    out.n_write_buffers = (unsigned)(o->buffer_bytes / WRITE_BUFFER_SHARE / SINK_BUFFER_BYTES);
    if (out.n_write_buffers < SINK_MIN_BUFFERS)
        out.n_write_buffers = SINK_MIN_BUFFERS;
    uint64_t left = o->buffer_bytes - (uint64_t)out.n_write_buffers * SINK_BUFFER_BYTES;
    out.n_page_buffers = (uint32_t)(left / IMAGE_CLUSTER_BYTES);
    out.n_reserved = out.n_page_buffers / FAULT_SHARE;
    return output_open(&j->output, j->board, &out, e);
}

/* A fault's unit is copied out as buffers come free, so any size works; but one that is larger than
 * the buffers would hold its writer until the sink has taken most of it. */
static int check_units(const struct job *j, struct error *e)
{
    for (uint32_t i = 0; i < j->source->n_regions; i++) {
        const struct region *r = &j->source->regions[i];
        if (r->page_bytes > (uint64_t)j->output.pool.n_buffers * IMAGE_CLUSTER_BYTES) {
            error_set(e, VMSNAP_EXIT_USAGE, 0,
                      "%s has pages of %llu bytes, more than --buffer holds", r->name,
                      (unsigned long long)r->page_bytes);
            error_hint(e, "give a --buffer of at least twice the page size");
            return -EINVAL;
        }
    }
    return 0;
}

static int prepare(struct job *j, struct error *e)
{
    struct source *s = j->source;
    int ret = open_output(j, e);
    if (!ret)
        ret = s->ops->describe(s, &j->description, j->warnings, e);
    if (!ret)
        ret = s->ops->refuse_hazards(s, j->options->allowed, e);
    if (!ret)
        ret = check_units(j, e);
    if (!ret)
        ret = output_start(&j->output, s->regions, s->n_regions, j->options->n_threads,
                           j->options->level, e);
    if (ret)
        return ret;
    /* Locked, so that a fault never waits for our own memory. Freed memory stays with us. */
    mallopt(M_TRIM_THRESHOLD, 256 << 20);
    if (mlockall(MCL_CURRENT | MCL_FUTURE))
        log_warn("cannot lock our memory (%s): under memory pressure the guest may wait for it",
                 strerror(errno));
    return 0;
}

/* ---- attach ---- */

static int attach(struct job *j, struct error *e)
{
    struct source *s = j->source;
    struct capture *c = &j->capture;
    unsigned n_shards = j->options->n_shards ? j->options->n_shards : SHARDS_DEFAULT;
    if (n_shards > SHARDS_MAX) {
        error_set(e, VMSNAP_EXIT_USAGE, 0, "%u userfaultfds are too many: %u at most", n_shards,
                  SHARDS_MAX);
        return -EINVAL;
    }
    /* Said beforehand: it must be undone even if we die half-way through. */
    j->unmerged = true;
    atomic_store(&j->board->unmerged, true);
    int ret = s->ops->prepare_memory(s, e);
    if (ret)
        return ret;
    TESTHOOK_POINT("snapshot-unmerged");
    ret = arm_check_free(&s->target, s->regions, s->n_regions, e); /* as it is now */
    if (ret)
        return ret;
    ret = capture_init(c, &s->target, s->regions, s->n_regions, n_shards);
    if (ret)
        return error_set(e, VMSNAP_EXIT_FAILED, -ret, "cannot allocate the page map");
    ret = shards_open(c->shards, n_shards, c->target, s->timeout_ms, e);
    if (ret)
        return ret;
    TESTHOOK_POINT("snapshot-attached");
    j->capture_ready = true;
    c->pool = &j->output.pool;
    c->encoder = j->output.encoder;
    c->max_stall_ms = j->options->max_stall_ms;
    ret = shards_register(c->shards, n_shards, &c->map, e);
    /* Registered memory already makes MISSING events: serve before anything else. */
    for (unsigned i = 0; !ret && i < n_shards; i++)
        ret = faults_start(&c->shards[i].faults, c, &c->shards[i], e);
    if (!ret)
        ret = watch_start(&j->watch, c, j->output.sink, j->board, e);
    TESTHOOK_POINT("snapshot-registered");
    return ret;
}

bool job_interrupted(struct job *j)
{
    return interrupts_seen(&j->interrupts);
}

void job_show_progress(struct job *j)
{
    struct capture *c = &j->capture;
    progress_update(&j->progress, atomic_load(&c->map.n_saved) * IMAGE_CLUSTER_BYTES,
                    c->map.n_clusters * IMAGE_CLUSTER_BYTES, atomic_load(&c->write_faults));
}

/* ---- capture ---- */

/* Waits until every cluster is saved. -EINTR: a signal asks to give up. */
static int wait_for_capture(struct job *j, struct error *e)
{
    progress_start(&j->progress, "saved", j->options->progress);
    struct pollfd fds[3] = {{.fd = j->done_event, .events = POLLIN},
                            {.fd = j->capture.failed_event, .events = POLLIN},
                            {.fd = j->interrupts.fd, .events = POLLIN}};
    int ret = 0;
    while (!ret && !fds[0].revents) {
        poll(fds, 3, TICK_MS);
        if (job_interrupted(j))
            ret = -EINTR;
        job_show_progress(j);
        job_note_throttling(j);
        if (fds[1].revents)
            break;
    }
    progress_finish(&j->progress);
    if (!ret && capture_failed(&j->capture))
        ret = sink_error(j->output.sink, e) ? -EIO : capture_error(&j->capture, e);
    return ret;
}

/* All is saved: the guest is set free of us. */
static void let_go(struct job *j)
{
    struct capture *c = &j->capture;
    arm_release(&c->map);
    atomic_store(&j->board->protected, false);
    watch_stop(j->watch);
    j->watch = NULL;
    sweep_join(j->sweep);
    j->sweep = NULL;
    for (unsigned i = 0; i < c->n_shards; i++) {
        if (c->shards[i].faults && faults_stop(c->shards[i].faults))
            log_warn("a fault thread hangs in the kernel; it ends with this process");
        c->shards[i].faults = NULL;
    }
    shards_close(c->shards, c->n_shards);
}

static int remerge(struct job *j, struct error *e)
{
    if (!j->unmerged)
        return 0;
    j->unmerged = false;
    int ret = j->source->ops->restore_memory(j->source, e);
    if (!ret)
        atomic_store(&j->board->unmerged, false);
    return ret;
}

static int capture(struct job *j, struct error *e)
{
    int ret = sweep_start(&j->sweep, &j->capture, j->output.writer, j->done_event, e);
    if (!ret)
        ret = wait_for_capture(j, e);
    if (ret)
        return ret;
    TESTHOOK_POINT("snapshot-saved");
    let_go(j);
    TESTHOOK_POINT("snapshot-released");
    struct error problem = {0};
    if (remerge(j, &problem))
        json_array_append_new(
            j->warnings, json_printed("KSM stays off for the VM's memory: %s", problem.message));
    ret = huge_start(j->huge);
    if (ret)
        log_info("huge pages that were split stay so: %s", strerror(-ret));
    return 0;
}

/* ---- the end ---- */

/* True if the VM has ended; one that has closed its socket is about to. */
static bool has_ended(const struct target *t, const struct error *e)
{
    struct pollfd p = {.fd = t->pidfd, .events = POLLIN};
    bool hung_up = e->exit_code == VMSNAP_EXIT_TARGET && e->err == EPIPE;
    return e->guest == GUEST_ENDED || poll(&p, 1, hung_up ? HANG_UP_MS : 0) > 0;
}

/* A VM that was paused before is not let run, but whatever the source holds of it is let go. */
static void resume_vm(struct job *j)
{
    struct error problem = {0};
    if (j->source->ops->resume(j->source, &problem) == 0)
        atomic_store(&j->board->paused, false);
    else if (atomic_load(&j->board->paused))
        log_warn("cannot resume the VM (%s); the guardian tries again", problem.message);
}

/* With the VM still paused the guardian ends us if the rest takes its time, for the watch beats no
 * more then, and resumes the VM: what has gone wrong is not to be lost with us. */
static void tell_guardian(struct job *j, const struct error *e)
{
    j->board->told = *e;
    atomic_store(&j->board->has_told, true);
}

/* After a failure at any step: the guest first. Says in *e what became of it. */
static void give_up(struct job *j, struct error *e)
{
    struct source *s = j->source;
    if (j->capture_ready) {
        capture_fail(&j->capture, CAPTURE_CANCELLED, 0, 0);
        arm_release(&j->capture.map);
    }
    huge_stop(j->huge);
    bool alive = !has_ended(&s->target, e);
    if (!alive)
        e->guest = GUEST_ENDED;
    if (alive && (atomic_load(&j->board->paused) || (j->pause_begun && !j->pause_over)))
        resume_vm(j);
    tell_guardian(j, e);
    TESTHOOK_POINT("giving-up");
    output_cancel(&j->output);
    if (j->capture_ready)
        let_go(j);
    struct error problem = {0};
    /* A VM that could not be resumed is the guardian's: it is to come to it soon. */
    if (alive && !atomic_load(&j->board->paused) && remerge(j, &problem))
        log_warn("KSM stays off for the VM's memory: %s", problem.message);
    if (e->guest == GUEST_UNTOUCHED && j->capture_ready)
        e->guest = !target_alive(&s->target)               ? GUEST_ENDED
                   : atomic_load(&j->board->paused_before) ? GUEST_PAUSED
                   : j->was_running                        ? GUEST_RUNNING
                                                           : GUEST_UNTOUCHED;
}

static void tear_down(struct job *j)
{
    output_close(&j->output);
    huge_free(j->huge);
    free(j->device_state);
}

static int run_steps(struct job *j, struct error *e)
{
    int ret = prepare(j, e);
    if (!ret && job_interrupted(j))
        ret = -EINTR;
    if (!ret)
        ret = attach(j, e);
    if (!ret)
        ret = job_note_huge(j, e);
    if (!ret)
        ret = job_arm_live(j, e);
    if (!ret)
        ret = job_pause(j, e);
    if (!ret)
        ret = capture(j, e);
    if (!ret)
        ret = job_finish(j, e);
    return ret;
}

/* guardian.work: in the worker process. */
static int work(void *opaque, struct guardian_board *board, json_t **summary, struct error *e)
{
    struct job *j = opaque;
    j->board = board;
    int ret = interrupts_watch(&j->interrupts);
    j->done_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (ret || j->done_event < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, ret ? -ret : errno, "cannot start");
    ret = run_steps(j, e);
    if (ret) {
        give_up(j, e);
        if (j->interrupts.by)
            ret = interrupts_error(&j->interrupts, e);
    } else {
        *summary = job_summary(j);
        job_explain(j);
    }
    tear_down(j);
    return ret;
}

static int resume_after_death(void *opaque, struct error *e)
{
    struct job *j = opaque;
    return j->source->ops->resume_after_death(j->source, e);
}

static int remerge_after_death(void *opaque, struct error *e)
{
    struct job *j = opaque;
    return j->source->ops->restore_memory(j->source, e);
}

int snapshot_run_from(struct source *source, const struct snapshot_options *options,
                      json_t **summary, struct error *e)
{
    struct job j = {.options = options, .source = source, .interrupts.fd = -1, .done_event = -1};
    j.started_ns = clock_monotonic_ns();
    j.warnings = json_array();
    j.precopy_passes = json_array();
    struct guardian g = {.max_stall_ms = options->max_stall_ms,
                         .opaque = &j,
                         .work = work,
                         .resume = resume_after_death,
                         .remerge = remerge_after_death};
    int ret = guardian_run(&g, summary, e);
    json_decref(j.warnings);
    json_decref(j.precopy_passes);
    return ret;
}

static int open_source(struct source **out, const struct snapshot_options *o, struct error *e)
{
    if (!o->api_path)
        return source_open(out, o->qmp_path, o->pid, o->timeout_ms, e);
    const struct source_firecracker_options firecracker = {
        .api_path = o->api_path, .pid = o->pid, .maps = o->maps, .timeout_ms = o->timeout_ms};
    return source_firecracker_open(out, &firecracker, e);
}

int snapshot_run(const struct snapshot_options *options, json_t **summary, struct error *e)
{
    struct source *source = NULL;
    int ret = kernel_require(e);
    if (!ret)
        ret = open_source(&source, options, e);
    if (ret)
        return ret;
    ret = snapshot_run_from(source, options, summary, e);
    source->ops->close(source);
    return ret;
}
