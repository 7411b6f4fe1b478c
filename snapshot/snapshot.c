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
 *            only then the file gets its name.
 *
 * Every failure goes through give_up(): the guest is freed first, then resumed if it was paused,
 * then the rest is taken down; nothing is published.
 */
#include "snapshot/snapshot.h"

#include <errno.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/format.h"
#include "common/image_writer.h"
#include "common/inject.h"
#include "common/kernel.h"
#include "common/log.h"
#include "common/pool.h"
#include "common/progress.h"
#include "common/sink.h"
#include "common/testhook.h"
#include "snapshot/arm.h"
#include "snapshot/capture.h"
#include "snapshot/chunk.h"
#include "snapshot/encode.h"
#include "snapshot/faults.h"
#include "snapshot/guardian.h"
#include "snapshot/live.h"
#include "snapshot/source.h"
#include "snapshot/sweep.h"
#include "snapshot/watch.h"

#define TICK_MS 200
#define HANG_UP_MS 500
/* Of --buffer an eighth goes to write buffers, the rest to page buffers; a quarter of those is
 * kept for faults. */
#define WRITE_BUFFER_SHARE 8
#define FAULT_SHARE 4
#define MIN_PAGE_BUFFERS 128u /* a reserve of 2 MiB */

struct job {
    const struct snapshot_options *options;
    struct guardian_board *board;
    struct source *source;
    json_t *description;
    json_t *warnings;
    struct sink *sink;
    struct image_writer *writer;
    struct pool pool;
    struct encoder *encoder;
    struct capture capture;
    bool capture_ready;
    struct faults *faults;
    struct sweep *sweep;
    struct watch *watch;
    struct live live;
    json_t *precopy_passes;
    struct progress progress;
    uint64_t armed_in_pause; /* clusters */
    int uffd;
    int signal_fd;
    int done_event;
    bool unmerged;
    bool was_running;
    int interrupted_by; /* SIGINT or SIGTERM */
    void *device_state;
    size_t device_state_bytes;
    struct pause_times pause;
    uint64_t started_ns, instant_ns, finished_ns;
};

uint64_t snapshot_min_buffer(void)
{
    return (uint64_t)SINK_MIN_BUFFERS * SINK_BUFFER_BYTES +
           (uint64_t)MIN_PAGE_BUFFERS * FAULT_SHARE * IMAGE_CLUSTER_BYTES;
}

/* ---- prepare: everything that can fail for reasons of our own, before the VM is touched ---- */

static int open_sink(struct job *j, struct error *e)
{
    const struct snapshot_options *o = j->options;
    struct sink_options so = {.overwrite = o->overwrite, .bytes_per_s = o->bwlimit};
    so.n_buffers = (unsigned)(o->buffer_bytes / WRITE_BUFFER_SHARE / SINK_BUFFER_BYTES);
    if (so.n_buffers < SINK_MIN_BUFFERS)
        so.n_buffers = SINK_MIN_BUFFERS;
    int ret = strcmp(o->image_path, "-") == 0 ? sink_open_fd(&j->sink, STDOUT_FILENO, &so, e)
                                              : sink_open_file(&j->sink, o->image_path, &so, e);
    if (ret)
        return ret;
    const char *temporary = sink_temporary_path(j->sink);
    if (temporary)
        snprintf(j->board->temporary, sizeof(j->board->temporary), "%s", temporary);
    uint64_t left = o->buffer_bytes - (uint64_t)so.n_buffers * SINK_BUFFER_BYTES;
    uint32_t n = (uint32_t)(left / IMAGE_CLUSTER_BYTES);
    ret = pool_init(&j->pool, n, IMAGE_CLUSTER_BYTES, n / FAULT_SHARE);
    if (ret)
        return error_set(e, VMSNAP_EXIT_FAILED, -ret, "cannot allocate %llu bytes of buffers",
                         (unsigned long long)left);
    return 0;
}

/* A fault's unit is copied out as buffers come free, so any size works; but one that is larger than
 * the buffers would hold its writer until the sink has taken most of it. */
static int check_units(const struct job *j, struct error *e)
{
    for (uint32_t i = 0; i < j->source->n_regions; i++) {
        const struct region *r = &j->source->regions[i];
        if (r->page_bytes > (uint64_t)j->pool.n_buffers * IMAGE_CLUSTER_BYTES) {
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
    int ret = open_sink(j, e);
    if (!ret)
        ret = s->ops->describe(s, &j->description, j->warnings, e);
    if (!ret)
        ret = s->ops->refuse_hazards(s, j->options->allowed, e);
    if (!ret)
        ret = check_units(j, e);
    if (!ret)
        ret = image_writer_open(&j->writer, j->sink, s->regions, s->n_regions, e);
    if (!ret)
        ret = encoder_open(&j->encoder, &j->pool, j->writer, j->options->n_threads,
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
    /* Said beforehand: it must be undone even if we die half-way through. */
    j->unmerged = true;
    atomic_store(&j->board->unmerged, true);
    int ret = s->ops->prepare_memory(s, e);
    if (ret)
        return ret;
    TESTHOOK_POINT("snapshot-unmerged");
    ret = inject_userfaultfd(&s->target, &j->uffd, NULL, s->timeout_ms, e);
    if (ret)
        return ret;
    TESTHOOK_POINT("snapshot-attached");
    ret = capture_init(&j->capture, &s->target, j->uffd, s->regions, s->n_regions);
    if (ret)
        return error_set(e, VMSNAP_EXIT_FAILED, -ret, "cannot allocate the page map");
    j->capture_ready = true;
    j->capture.pool = &j->pool;
    j->capture.encoder = j->encoder;
    j->capture.max_stall_ms = j->options->max_stall_ms;
    ret = arm_register(j->uffd, s->regions, s->n_regions, e);
    if (ret) {
        /* Takes our own registrations away and no other's, as UNREGISTER would (arm.h). */
        close(j->uffd);
        j->uffd = -1;
    }
    /* Registered memory already makes MISSING events: serve before anything else. */
    if (!ret)
        ret = faults_start(&j->faults, &j->capture, e);
    if (!ret)
        ret = watch_start(&j->watch, &j->capture, j->sink, j->board, e);
    TESTHOOK_POINT("snapshot-registered");
    return ret;
}

/* ---- before the instant ---- */

static bool interrupted(struct job *j)
{
    struct signalfd_siginfo info;
    while (read(j->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (info.ssi_signo == SIGUSR1)
            progress_request();
        else if (!j->interrupted_by)
            j->interrupted_by = (int)info.ssi_signo;
    }
    return j->interrupted_by != 0;
}

static void show_progress(struct job *j)
{
    struct capture *c = &j->capture;
    progress_update(&j->progress, atomic_load(&c->map.n_saved) * IMAGE_CLUSTER_BYTES,
                    c->map.n_clusters * IMAGE_CLUSTER_BYTES, atomic_load(&c->write_faults));
}

/* live.tick */
static int tick(void *opaque)
{
    struct job *j = opaque;
    show_progress(j);
    return interrupted(j) ? -EINTR : 0;
}

/* --precopy: saves what is protected, over and over, at most that many times. */
static int precopy(struct job *j, struct error *e)
{
    struct live *l = &j->live;
    int ret = 0;
    struct chunk_saver *saver = chunk_saver_new(&j->capture, j->writer, CHUNK_BEFORE);
    if (!saver)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot start precopy");
    for (unsigned i = 0; !ret && i < j->options->precopy; i++) {
        struct live_precopy done;
        ret = live_precopy(l, saver, &done, e);
        TESTHOOK_POINT("snapshot-precopied");
        json_array_append_new(
            j->precopy_passes,
            json_pack("{s:I, s:I, s:I}", "write_faults", (json_int_t)done.write_faults,
                      "saved_bytes", (json_int_t)done.saved_bytes, "wall_ns", (json_int_t)done.ns));
    }
    chunk_saver_free(saver);
    return ret;
}

/* Protects what pays, and saves what is wanted, while the guest runs. */
static int run_passes(struct job *j, struct error *e)
{
    /* From here on a write may wait for us: the guardian minds our heartbeat. */
    atomic_store(&j->board->protected, true);
    progress_start(&j->progress, "saved", j->options->progress && j->options->precopy);
    int ret = precopy(j, e);
    if (!ret)
        ret = live_settle(&j->live, e);
    progress_finish(&j->progress);
    return ret;
}

/* Leaves to the pause as little as can be. */
static int arm_live(struct job *j, struct error *e)
{
    struct source *s = j->source;
    struct live *l = &j->live;
    *l = (struct live){
        .capture = &j->capture, .tick = tick, .opaque = j, .timeout_ms = s->timeout_ms};
    int ret = live_choose(l, j->options->live, j->options->precopy > 0, e);
    if (!ret && l->n_tracked)
        ret = run_passes(j, e);
    if (!ret && s->ops->prepare_pause)
        ret = s->ops->prepare_pause(s, e);
    /* That may have taken its time, and the guest wrote. */
    if (!ret && l->n_tracked)
        ret = live_settle(l, e);
    if (!ret && l->n_tracked)
        TESTHOOK_POINT("snapshot-live-armed");
    if (ret && !j->interrupted_by && sink_error(j->sink, e))
        ret = -EIO; /* which is why */
    return ret;
}

/* ---- the pause ---- */

static int freeze(struct job *j, struct error *e)
{
    int ret = faults_freeze(j->faults, j->source->timeout_ms);
    if (ret)
        return capture_failed(&j->capture)
                   ? capture_error(&j->capture, e)
                   : error_set(e, VMSNAP_EXIT_TIMEOUT, -ret, "the fault thread gets no CPU time");
    return 0;
}

static int protect(struct job *j, struct error *e)
{
    uint64_t from = clock_monotonic_ns();
    int ret = TESTHOOK_BROKEN("phase-early") ? 0 : freeze(j, e);
    if (!ret)
        ret = arm_protect(j->uffd, &j->capture.map, j->source->timeout_ms, &j->armed_in_pause, e);
    if (ret && capture_failed(&j->capture))
        ret = capture_error(&j->capture, e); /* protection was dropped while it was set */
    j->pause.arm_ns = clock_monotonic_ns() - from;
    return ret;
}

/* From stop to cont. The board says so beforehand: the guardian resumes the VM if we die. */
static int pause_and_protect(struct job *j, struct error *e)
{
    struct source *s = j->source;
    if (TESTHOOK_BROKEN("phase-early")) {
        int early = freeze(j, e);
        if (early)
            return early;
        usleep(50000);
    }
    if (interrupted(j))
        return -EINTR;
    atomic_store(&j->board->paused, true);
    TESTHOOK_POINT("snapshot-before-pause");
    uint64_t from = clock_monotonic_ns();
    int ret = s->ops->pause(s, &j->was_running, e);
    if (ret)
        return ret;
    if (!j->was_running) {
        atomic_store(&j->board->paused_before, true);
        atomic_store(&j->board->paused, false);
    }
    j->instant_ns = clock_realtime_ns();
    j->pause.stop_ns = clock_monotonic_ns() - from;
    TESTHOOK_POINT("snapshot-paused");
    from = clock_monotonic_ns();
    ret = s->ops->save_state(s, &j->device_state, &j->device_state_bytes, e);
    j->pause.state_ns = clock_monotonic_ns() - from;
    if (ret)
        return ret;
    TESTHOOK_POINT("snapshot-state-saved");
    atomic_store(&j->board->touched, true);
    atomic_store(&j->board->protected, true);
    ret = protect(j, e);
    if (ret)
        return ret;
    TESTHOOK_POINT("snapshot-armed");
    from = clock_monotonic_ns();
    ret = s->ops->resume(s, e);
    j->pause.cont_ns = clock_monotonic_ns() - from;
    if (ret)
        return ret;
    atomic_store(&j->board->paused, false);
    log_info("stop %.2f ms, state %.2f ms, protecting %llu clusters %.2f ms, cont %.2f ms",
             (double)j->pause.stop_ns / 1e6, (double)j->pause.state_ns / 1e6,
             (unsigned long long)j->armed_in_pause, (double)j->pause.arm_ns / 1e6,
             (double)j->pause.cont_ns / 1e6);
    TESTHOOK_POINT("snapshot-resumed");
    return 0;
}

/* ---- capture ---- */

/* Waits until every cluster is saved. -EINTR: a signal asks to give up. */
static int wait_for_capture(struct job *j, struct error *e)
{
    progress_start(&j->progress, "saved", j->options->progress);
    struct pollfd fds[3] = {{.fd = j->done_event, .events = POLLIN},
                            {.fd = j->capture.failed_event, .events = POLLIN},
                            {.fd = j->signal_fd, .events = POLLIN}};
    int ret = 0;
    while (!ret && !fds[0].revents) {
        poll(fds, 3, TICK_MS);
        if (interrupted(j))
            ret = -EINTR;
        show_progress(j);
        if (fds[1].revents)
            break;
    }
    progress_finish(&j->progress);
    if (!ret && capture_failed(&j->capture))
        ret = sink_error(j->sink, e) ? -EIO : capture_error(&j->capture, e);
    return ret;
}

/* All is saved: the guest is set free of us. */
static void let_go(struct job *j)
{
    struct source *s = j->source;
    arm_release(j->uffd, s->regions, s->n_regions);
    atomic_store(&j->board->protected, false);
    watch_stop(j->watch);
    j->watch = NULL;
    sweep_join(j->sweep);
    j->sweep = NULL;
    if (j->faults && faults_stop(j->faults))
        log_warn("the fault thread hangs in the kernel; it ends with this process");
    j->faults = NULL;
    close(j->uffd);
    j->uffd = -1;
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
    int ret = sweep_start(&j->sweep, &j->capture, j->writer, j->done_event, e);
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
            j->warnings, json_sprintf("KSM stays off for the VM's memory: %s", problem.message));
    return 0;
}

/* ---- finish ---- */

static int make_hot_list(const struct capture *c, struct image_hot **out)
{
    struct image_hot *hot = calloc(c->n_hot ? c->n_hot : 1, sizeof(*hot));
    if (!hot)
        return -ENOMEM;
    for (uint64_t i = 0; i < c->n_hot; i++)
        hot[i] = (struct image_hot){.cluster = (uint64_t)c->hot[i].cluster_high << 32 |
                                               c->hot[i].cluster_low,
                                    .written = c->hot[i].written};
    *out = hot;
    return 0;
}

static int write_tail(struct job *j, struct error *e)
{
    struct image_finish f = {.gpa = j->source->gpa,
                             .n_gpa = j->source->n_gpa,
                             .n_hot = j->capture.n_hot,
                             .device_state = j->device_state,
                             .device_state_bytes = j->device_state_bytes,
                             .instant_ns = j->instant_ns};
    CLEANUP_FREE struct image_hot *hot = NULL;
    CLEANUP_FREE char *text = json_dumps(j->description, JSON_COMPACT);
    int ret = make_hot_list(&j->capture, &hot);
    if (ret || !text)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot write the image's end");
    f.hot = hot;
    f.description = text;
    f.poison = encoder_poison(j->encoder, &f.n_poison);
    f.pages_from_faults = atomic_load(&j->capture.clusters_from_faults) * IMAGE_CLUSTER_PAGES;
    return image_writer_finish(j->writer, &f, e);
}

/* The guest is free of us: from here on the guardian may simply kill us when the user asks. */
static int finish(struct job *j, struct error *e)
{
    if (interrupted(j)) /* by the guardian's death, for one: nobody waits for the image any more */
        return -EINTR;
    atomic_store(&j->board->finishing, true);
    int ret = encoder_finish(j->encoder);
    if (ret)
        return sink_error(j->sink, e) ? ret
                                      : error_set(e, VMSNAP_EXIT_FAILED, -ret, "cannot compress");
    ret = write_tail(j, e);
    if (ret)
        return ret;
    TESTHOOK_POINT("snapshot-finished");
    if (interrupted(j))
        return -EINTR;
    ret = sink_commit(j->sink, e);
    if (ret)
        return ret;
    atomic_store(&j->board->published, true);
    j->board->temporary[0] = '\0';
    TESTHOOK_POINT("snapshot-committed");
    j->finished_ns = clock_monotonic_ns();
    return 0;
}

/* ---- summary ---- */

static void add_number(json_t *o, const char *key, uint64_t n)
{
    json_object_set_new(o, key, json_integer((json_int_t)n));
}

static void add_copy(json_t *o, const char *key, const json_t *from, const char *from_key)
{
    json_t *value = json_object_get(from, from_key);
    json_object_set(o, key, value ? value : json_null());
}

static void add_pause(const struct job *j, json_t *o)
{
    struct pause_times t = j->pause;
    j->source->ops->pause_times(j->source, &t);
    if (!t.pause_ns && j->was_running)
        t.pause_ns = t.stop_ns + t.state_ns + t.arm_ns + t.cont_ns;
    add_number(o, "pause_ns", t.pause_ns);
    add_number(o, "stop_ns", t.stop_ns);
    add_number(o, "state_ns", t.state_ns);
    add_number(o, "arm_ns", t.arm_ns);
    add_number(o, "cont_ns", t.cont_ns);
    add_number(o, "armed_in_pause", j->armed_in_pause);
    json_object_set(o, "precopy_passes", j->precopy_passes);
    add_number(o, "live_passes", j->live.passes);
    add_number(o, "live_ns", j->live.ns);
    add_number(o, "live_faults", atomic_load(&((struct capture *)&j->capture)->live_faults));
}

static void add_faults(const struct job *j, json_t *o)
{
    struct capture *c = (struct capture *)&j->capture;
    add_number(o, "pages_from_faults", atomic_load(&c->clusters_from_faults) * IMAGE_CLUSTER_PAGES);
    add_number(o, "write_faults", atomic_load(&c->write_faults));
    add_number(o, "fault_p50_ns", histogram_quantile(&c->latency, 0.5));
    add_number(o, "fault_p99_ns", histogram_quantile(&c->latency, 0.99));
    add_number(o, "fault_max_ns", c->latency.max_ns);
    add_number(o, "longest_gap_ns", c->latency.max_ns);
    add_number(o, "throttled_ns", atomic_load(&c->throttled_ns));
}

static json_t *make_summary(const struct job *j)
{
    json_t *o = json_object();
    struct image_totals totals;
    char id[33], instant[FORMAT_MAX];
    const uint8_t *raw = image_writer_id(j->writer);
    for (int i = 0; i < 16; i++)
        snprintf(id + 2 * i, 3, "%02x", raw[i]);
    image_writer_totals(j->writer, &totals);
    add_pause(j, o);
    add_number(o, "wall_ns", j->finished_ns - j->started_ns);
    add_number(o, "ram_bytes", totals.pages_total * IMAGE_PAGE_BYTES);
    add_number(o, "image_bytes", totals.image_bytes);
    add_number(o, "pages_total", totals.pages_total);
    add_number(o, "pages_zero", totals.pages_zero);
    add_number(o, "pages_stored", totals.pages_stored);
    add_number(o, "pages_poisoned", totals.pages_poisoned);
    add_faults(j, o);
    add_number(o, "buffer_peak_bytes", pool_peak_bytes(&j->pool) + sink_buffer_bytes(j->sink));
    json_object_set_new(o, "image", json_string_nocheck(j->options->image_path));
    json_object_set_new(o, "image_id", json_string(id));
    json_object_set_new(o, "instant", json_string(format_instant(instant, j->instant_ns)));
    add_copy(o, "vm_name", j->description, "vm_name");
    add_copy(o, "accelerator", j->description, "accelerator");
    json_object_set_new(o, "guest_state", json_string(j->was_running ? "running" : "paused"));
    json_object_set(o, "warnings", j->warnings);
    return o;
}

static void explain_stages(const struct job *j)
{
    uint64_t busy, waiting;
    encoder_times(j->encoder, &busy, &waiting);
    log_debug("compressors: busy %.1f ms, waiting %.1f ms, over %u threads", (double)busy / 1e6,
              (double)waiting / 1e6, j->options->n_threads);
}

/* ---- the end ---- */

/* True if the VM has ended; one that has closed its socket is about to. */
static bool has_ended(const struct target *t, const struct error *e)
{
    struct pollfd p = {.fd = t->pidfd, .events = POLLIN};
    bool hung_up = e->exit_code == VMSNAP_EXIT_TARGET && e->err == EPIPE;
    return e->guest == GUEST_ENDED || poll(&p, 1, hung_up ? HANG_UP_MS : 0) > 0;
}

/* After a failure at any step: the guest first. Says in *e what became of it. */
static void give_up(struct job *j, struct error *e)
{
    struct source *s = j->source;
    if (j->capture_ready) {
        capture_fail(&j->capture, CAPTURE_CANCELLED, 0, 0);
        arm_release(j->uffd, s->regions, s->n_regions);
    }
    bool alive = !has_ended(&s->target, e);
    if (!alive)
        e->guest = GUEST_ENDED;
    if (alive && atomic_load(&j->board->paused)) {
        struct error problem = {0};
        if (s->ops->resume(s, &problem) == 0)
            atomic_store(&j->board->paused, false);
        else
            log_warn("cannot resume the VM (%s); the guardian tries again", problem.message);
    }
    if (j->sink)
        sink_cancel(j->sink);
    if (j->capture_ready)
        let_go(j);
    else if (j->uffd >= 0)
        close(j->uffd);
    struct error problem = {0};
    if (alive && remerge(j, &problem))
        log_warn("KSM stays off for the VM's memory: %s", problem.message);
    if (e->guest == GUEST_UNTOUCHED && j->capture_ready)
        e->guest = !target_alive(&s->target)               ? GUEST_ENDED
                   : atomic_load(&j->board->paused_before) ? GUEST_PAUSED
                   : j->was_running                        ? GUEST_RUNNING
                                                           : GUEST_UNTOUCHED;
}

static void tear_down(struct job *j)
{
    if (j->encoder) {
        encoder_cancel(j->encoder);
        encoder_close(j->encoder);
    }
    if (j->sink && sink_close(j->sink))
        log_warn("the sink hangs; its thread ends with this process");
    if (j->writer)
        image_writer_close(j->writer);
    free(j->device_state);
}

static int run_steps(struct job *j, struct error *e)
{
    int ret = prepare(j, e);
    if (!ret && interrupted(j))
        ret = -EINTR;
    if (!ret)
        ret = attach(j, e);
    if (!ret)
        ret = arm_live(j, e);
    if (!ret)
        ret = pause_and_protect(j, e);
    if (!ret)
        ret = capture(j, e);
    if (!ret)
        ret = finish(j, e);
    return ret;
}

static int watch_signals(struct job *j)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    j->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    j->done_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return j->signal_fd < 0 || j->done_event < 0 ? -errno : 0;
}

static int set_interrupted(const struct job *j, struct error *e)
{
    enum guest_state guest = e->guest;
    error_set(e, j->interrupted_by == SIGTERM ? VMSNAP_EXIT_SIGTERM : VMSNAP_EXIT_SIGINT, 0,
              "interrupted by %s", j->interrupted_by == SIGTERM ? "SIGTERM" : "SIGINT");
    e->guest = guest;
    return -EINTR;
}

/* guardian.work: in the worker process. */
static int work(void *opaque, struct guardian_board *board, json_t **summary, struct error *e)
{
    struct job *j = opaque;
    j->board = board;
    int ret = watch_signals(j);
    if (ret)
        return error_set(e, VMSNAP_EXIT_FAILED, -ret, "cannot start");
    ret = run_steps(j, e);
    if (ret) {
        give_up(j, e);
        if (j->interrupted_by)
            ret = set_interrupted(j, e);
    } else {
        *summary = make_summary(j);
        explain_stages(j);
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
    struct job j = {
        .options = options, .source = source, .uffd = -1, .signal_fd = -1, .done_event = -1};
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

int snapshot_run(const struct snapshot_options *options, json_t **summary, struct error *e)
{
    struct source *source = NULL;
    int ret = kernel_require(e);
    if (!ret)
        ret = source_open(&source, options->qmp_path, options->pid, options->timeout_ms, e);
    if (ret)
        return ret;
    ret = snapshot_run_from(source, options, summary, e);
    source->ops->close(source);
    return ret;
}
