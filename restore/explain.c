#include "restore/explain.h"

#include "common/log.h"

static double mib(uint64_t bytes)
{
    return (double)bytes / (1u << 20);
}

/* MiB per second of `ms` */
static double rate(uint64_t bytes, double ms)
{
    return ms > 0 ? mib(bytes) / ms * 1e3 : 0;
}

static void explain_server(const struct server_stats *stats)
{
    const struct serve_stages *s = stats->serve;
    uint64_t bytes = stage_bytes(&s->installing);
    log_debug("stage serve: answering %.1f ms, installing %.1f; asleep %.1f in %llu sleeps; %llu "
              "faults, %llu jobs, %.1f MiB installed at %.0f MiB/s",
              stage_ms(&s->answering), stage_ms(&s->installing), stage_ms(&s->asleep),
              (unsigned long long)stage_times(&s->asleep), (unsigned long long)stats->demand_faults,
              (unsigned long long)stage_times(&s->installing), mib(bytes),
              rate(bytes, stage_ms(&s->installing)));
}

static void explain_workers(const struct fill_stages *s, unsigned n_threads)
{
    uint64_t bytes = stage_bytes(&s->decoding);
    log_debug("stage decode, %u threads: looking %.1f ms, reading and decoding %.1f; waiting for "
              "the server %.1f, for --bwlimit %.1f; %.1f MiB decoded at %.0f MiB/s",
              n_threads, stage_ms(&s->looking), stage_ms(&s->decoding), stage_ms(&s->for_slots),
              stage_ms(&s->held_back), mib(bytes), rate(bytes, stage_ms(&s->decoding)));
}

void explain_stages(const struct server_stats *stats)
{
    if (log_level() < LOG_DEBUG)
        return;
    if (stats->serve)
        explain_server(stats);
    if (stats->fill)
        explain_workers(stats->fill, stats->n_threads);
}
