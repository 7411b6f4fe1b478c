/* job_pause.c - the steps from the attached VM to the resumed one; see job.h. */
#include "snapshot/job.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/testhook.h"
#include "common/thread.h"
#include "snapshot/memory/arm.h"
#include "snapshot/save/chunk.h"

#define SESSION_NICE 10 /* a tenth of the guest's share, where both want it */

/* ---- before the instant ---- */

/* live.tick, and for prepare_pause */
static int tick(void *opaque)
{
    struct job *j = opaque;
    job_show_progress(j);
    return job_interrupted(j) ? -EINTR : 0;
}

/* --precopy: saves what is protected, over and over, at most that many times. */
static int precopy(struct job *j, struct error *e)
{
    struct live *l = &j->live;
    int ret = 0;
    struct chunk_saver *saver = chunk_saver_new(&j->capture, j->output.writer, CHUNK_BEFORE);
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

int job_arm_live(struct job *j, struct error *e)
{
    struct source *s = j->source;
    struct live *l = &j->live;
    progress_start(&j->progress, "saved", false); /* for SIGUSR1, whatever is waited for */
    *l = (struct live){
        .capture = &j->capture, .tick = tick, .opaque = j, .timeout_ms = s->timeout_ms};
    int ret = live_choose(l, j->options->live, j->options->precopy > 0, e);
    if (!ret && l->n_tracked)
        ret = run_passes(j, e);
    if (!ret && s->ops->prepare_pause)
        ret = s->ops->prepare_pause(s, tick, j, e);
    /* That may have taken its time, and the guest wrote. */
    if (!ret && l->n_tracked)
        ret = live_settle(l, e);
    if (!ret && l->n_tracked)
        TESTHOOK_POINT("snapshot-live-armed");
    if (ret && !j->interrupts.by && sink_error(j->output.sink, e))
        ret = -EIO; /* which is why */
    return ret;
}

/* ---- the pause ---- */

static int freeze(struct job *j, struct error *e)
{
    struct capture *c = &j->capture;
    int ret = 0;
    for (unsigned i = 0; !ret && i < c->n_shards; i++)
        ret = faults_freeze(c->shards[i].faults, j->source->timeout_ms);
    if (ret)
        return capture_failed(c)
                   ? capture_error(c, e)
                   : error_set(e, VMSNAP_EXIT_TIMEOUT, -ret, "the fault thread gets no CPU time");
    return 0;
}

static int protect(struct job *j, struct error *e)
{
    uint64_t from = clock_monotonic_ns();
    int ret = TESTHOOK_BROKEN("phase-early") ? 0 : freeze(j, e);
    if (!ret)
        ret = arm_protect(&j->capture.map, j->source->timeout_ms, &j->armed_in_pause, e);
    if (ret && capture_failed(&j->capture))
        ret = capture_error(&j->capture, e); /* protection was dropped while it was set */
    j->pause.arm_ns = clock_monotonic_ns() - from;
    return ret;
}

/*
 * From here on what takes CPU are the compressors, and the guest is to have it first. Their nice
 * value does not see to that (thread.h). Not before: in the pause the guest waits for us.
 *
 * Two sessions of equal weight would be fair over a second, but not over milliseconds: a session
 * whose one thread changes CPUs has no weight on the new one for a while. A vCPU was seen to wait
 * for 116 ms beside two compressors, for 5 with this.
 */
static void give_way(void)
{
    int ret = thread_session_nice(SESSION_NICE);
    if (ret && ret != -ENOENT)
        log_info("the compressors share the CPU with the guest on equal terms: %s", strerror(-ret));
}

int job_pause(struct job *j, struct error *e)
{
    struct source *s = j->source;
    if (TESTHOOK_BROKEN("phase-early")) {
        int early = freeze(j, e);
        if (early)
            return early;
        usleep(50000);
    }
    if (job_interrupted(j))
        return -EINTR;
    atomic_store(&j->board->paused, true);
    TESTHOOK_POINT("snapshot-before-pause");
    uint64_t from = clock_monotonic_ns();
    j->pause_begun = true;
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
    j->pause_over = true;
    atomic_store(&j->board->paused, false);
    give_way();
    log_info("stop %.2f ms, state %.2f ms, protecting %llu clusters %.2f ms, cont %.2f ms",
             (double)j->pause.stop_ns / 1e6, (double)j->pause.state_ns / 1e6,
             (unsigned long long)j->armed_in_pause, (double)j->pause.arm_ns / 1e6,
             (double)j->pause.cont_ns / 1e6);
    TESTHOOK_POINT("snapshot-resumed");
    return 0;
}
