/* job_summary.c - what a snapshot tells when it is done; see job.h. */
#include "snapshot/job.h"

#include "common/clock.h"
#include "common/format.h"
#include "common/log.h"

#define THROTTLING_NS 10000000000ull /* looked at over so long */

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

json_t *job_summary(const struct job *j)
{
    json_t *o = json_object();
    struct image_totals totals;
    image_writer_totals(j->output.writer, &totals);
    add_pause(j, o);
    add_number(o, "wall_ns", j->finished_ns - j->started_ns);
    output_add_sizes(&j->output, o);
    add_number(o, "pages_poisoned", totals.pages_poisoned);
    add_faults(j, o);
    add_number(o, "huge_bytes_before", huge_bytes_before(j->huge));
    add_number(o, "huge_bytes_after", huge_bytes_after(j->huge));
    add_number(o, "buffer_peak_bytes", output_peak_bytes(&j->output));
    json_object_set_new(o, "image", json_string_nocheck(j->options->image_path));
    output_add_identity(&j->output, o, j->instant_ns);
    add_copy(o, "vm_name", j->description, "vm_name");
    add_copy(o, "accelerator", j->description, "accelerator");
    json_object_set_new(o, "guest_state", json_string(j->was_running ? "running" : "paused"));
    json_object_set(o, "warnings", j->warnings);
    return o;
}

/* ---- the table of -vv ---- */

static double mib(uint64_t bytes)
{
    return (double)bytes / (1u << 20);
}

/* MiB per second of `ms` */
static double rate(uint64_t bytes, double ms)
{
    return ms > 0 ? mib(bytes) / ms * 1e3 : 0;
}

static void explain_faults(const struct capture *c)
{
    const struct capture_stages *s = &c->stages;
    struct capture *own = (struct capture *)c;
    double throttled = (double)atomic_load(&own->throttled_ns) / 1e6;
    double reading = stage_ms(&s->alive) - stage_ms(&s->serving) - stage_ms(&s->asleep);
    uint64_t bytes = atomic_load(&own->clusters_from_faults) * IMAGE_CLUSTER_BYTES;
    log_debug(
        "stage fault: serving %.1f ms, reading on %.1f; asleep %.1f, waiting for buffers %.1f; "
        "%llu faults, %.1f MiB saved",
        stage_ms(&s->serving) - throttled, reading, stage_ms(&s->asleep), throttled,
        (unsigned long long)atomic_load(&own->write_faults), mib(bytes));
}

static void explain_sweep(const struct capture_stages *s)
{
    uint64_t bytes = stage_bytes(&s->copying);
    log_debug(
        "stage sweep: looking %.1f ms, copying %.1f, unprotecting %.1f; waiting for buffers "
        "%.1f, for claims %.1f; %.1f MiB copied at %.0f MiB/s, %llu batches, %llu unprotected",
        stage_ms(&s->looking), stage_ms(&s->copying), stage_ms(&s->releasing),
        stage_ms(&s->for_buffers), stage_ms(&s->for_claims), mib(bytes),
        rate(bytes, stage_ms(&s->copying)), (unsigned long long)stage_times(&s->copying),
        (unsigned long long)stage_times(&s->releasing));
}

static void explain_encoder(const struct encoder_stages *s, const struct sink_stages *sink,
                            unsigned n_threads)
{
    double for_sink = stage_ms(&sink->appending);
    double packing = stage_ms(&s->packing), zeros = stage_ms(&s->looking);
    log_debug(
        "stage encode, %u threads: zeros %.1f ms, zstd %.1f, appending %.1f; waiting for work "
        "%.1f, for write buffers %.1f; %.1f MiB seen at %.0f MiB/s, %.1f MiB packed at %.0f "
        "MiB/s into %.1f",
        n_threads, zeros, packing, stage_ms(&s->appending) - for_sink, stage_ms(&s->waiting),
        for_sink, mib(stage_bytes(&s->looking)), rate(stage_bytes(&s->looking), zeros),
        mib(stage_bytes(&s->packing)), rate(stage_bytes(&s->packing), packing),
        mib(stage_bytes(&s->appending)));
}

static void explain_sink(const struct sink_stages *s)
{
    double active = stage_ms(&s->busy) + stage_ms(&s->waiting);
    uint64_t n = stage_times(&s->in_flight), bytes = stage_bytes(&s->in_flight);
    double all = stage_ms(&s->in_flight);
    log_debug("stage write: submitting %.1f ms; waiting for the file %.1f, for data %.1f, for "
              "--bwlimit %.1f; %llu bytes in %llu writes of %.2f MiB, %.2f ms each, %.1f in flight "
              "while any was, %u at most; %.0f MiB/s",
              stage_ms(&s->busy), stage_ms(&s->waiting), stage_ms(&s->idle),
              stage_ms(&s->held_back), (unsigned long long)bytes, (unsigned long long)n,
              n ? mib(bytes) / (double)n : 0, n ? all / (double)n : 0,
              active > 0 ? all / active : 0, atomic_load(&((struct sink_stages *)s)->deepest),
              rate(bytes, active));
}

void job_explain(const struct job *j)
{
    if (log_level() < LOG_DEBUG)
        return;
    explain_faults(&j->capture);
    explain_sweep(&j->capture.stages);
    explain_encoder(encoder_stages(j->output.encoder), sink_stages(j->output.sink),
                    j->options->n_threads);
    explain_sink(sink_stages(j->output.sink));
}

void job_note_throttling(struct job *j)
{
    uint64_t now = clock_monotonic_ns(), waited = atomic_load(&j->capture.throttled_ns);
    uint64_t passed = now - j->throttling_from_ns;
    if (j->throttling_from_ns && passed < THROTTLING_NS)
        return;
    char text[2][FORMAT_MAX];
    uint64_t since = waited - j->throttling_until_then_ns;
    if (j->throttling_from_ns && since > passed / 2 && !j->throttling_told) {
        log_warn("writes of the guest have waited for %s of the last %s: the image is not written "
                 "as fast as the guest writes (--bwlimit, --threads, --level)",
                 format_duration(text[0], since), format_duration(text[1], passed));
        j->throttling_told = true;
    }
    j->throttling_from_ns = now;
    j->throttling_until_then_ns = waited;
}
