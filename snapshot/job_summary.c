/* job_summary.c - what a snapshot tells when it is done; see job.h. */
#include "snapshot/job.h"

#include <stdio.h>

#include "common/format.h"
#include "common/log.h"

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

void job_explain(const struct job *j)
{
    uint64_t busy, waiting;
    encoder_times(j->encoder, &busy, &waiting);
    log_debug("compressors: busy %.1f ms, waiting %.1f ms, over %u threads", (double)busy / 1e6,
              (double)waiting / 1e6, j->options->n_threads);
}
