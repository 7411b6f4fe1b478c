#include "restore/decode/fill.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/codec.h"
#include "common/futex.h"
#include "common/pace.h"
#include "common/thread.h"
#include "restore/decode/rest.h"
#include "restore/decode/sweep.h"
#include "restore/memory/in_place.h"
#include "restore/memory/window.h"

/* Clusters that travel together: 64 KiB, installed in about 21 us, is the longest that a fault then
 * waits for the server. */
#define RUN_CLUSTERS 4u

enum stage { STAGE_PREFETCH, STAGE_ALL, STAGE_STOP };

struct fill {
    struct fill_config config;
    pthread_t *threads;
    unsigned n_threads;
    struct calm calm;
    atomic_uint stage; /* futex word: enum stage */
    atomic_ullong prefetch_cursor;
    atomic_uint prefetch_working; /* workers that are not through with it */
    atomic_uint all_working;
    pthread_mutex_t pace_lock; /* a leaf */
    struct pace pace;
    struct fill_stages stages;
    struct sweep sweep; /* the background pass */
};

uint64_t fill_slot_bytes(const struct blocks *blocks)
{
    uint64_t run = (uint64_t)RUN_CLUSTERS * IMAGE_CLUSTER_BYTES;
    uint64_t unit = blocks_max_unit(blocks);
    return unit > run ? unit : run;
}

static bool stopped(const struct fill *f)
{
    return atomic_load_explicit(&f->stage, memory_order_relaxed) == STAGE_STOP;
}

static bool is_pending(const struct fill *f, uint64_t cluster)
{
    return page_state_get(f->config.state, cluster) == CLUSTER_PENDING;
}

/* Whether the background pass must install it: an absent page reads as zeros by itself once the
 * registration is gone, so zeros cost nothing; a poisoned page must be put there. */
static bool needs_install(const struct fill *f, uint64_t cluster)
{
    return is_pending(f, cluster) && (!image_is_zero(f->config.img, cluster, 1) ||
                                      image_cluster_poison(f->config.img, cluster));
}

/* Decodes a job's clusters into its slot, up to the first that can't be read. */
static void decode_job(const struct fill *f, struct codec *codec, struct job *job,
                       unsigned char *to)
{
    struct error e = {0};
    for (uint32_t i = 0; i < job->n_clusters && job->status == 0; i++) {
        job->damaged = job->cluster + i;
        job->status = intake_read(f->config.intake, INTAKE_FOR_FILL, job->damaged, codec,
                                  to + (size_t)i * IMAGE_CLUSTER_BYTES, &e);
    }
    job_set_cause(job, &e);
}

/* A worker, and up to when its time is charged to a stage. */
struct worker {
    struct fill *fill;
    unsigned number;
    struct codec *codec;
    uint64_t lap_ns;
    struct rest rest;
};

/* What window_guard() runs. */
struct decoding {
    const struct worker *worker;
    struct job *job;
    unsigned char *to;
};

static int decode_into_window(void *opaque)
{
    const struct decoding *d = opaque;
    decode_job(d->worker->fill, d->worker->codec, d->job, d->to);
    return 0;
}

/* Straight into a huge page of shared memory. False: it has to go through the slot. */
static bool decode_in_place(const struct worker *w, struct job *job)
{
    const struct block *b = job->block;
    struct page_state *state = w->fill->config.state;
    if (!in_place_decodes(b) || !in_place_claim(state, b, job->cluster, job->n_clusters))
        return false;
    uint64_t offset = block_cluster_offset(b, job->cluster);
    uint64_t len = block_clip(b, offset, (uint64_t)job->n_clusters * IMAGE_CLUSTER_BYTES);
    struct decoding d = {.worker = w, .job = job, .to = window_at(b, offset)};
    int rc = window_populate(b, offset, len);
    if (rc == 0)
        rc = window_guard(decode_into_window, &d);
    window_forget(b, offset, len);
    job->in_place = rc == 0 && job->status == 0;
    if (!job->in_place)
        in_place_give_back(state, b, job->cluster, job->n_clusters);
    if (rc)
        job->status = 0;
    return rc == 0;
}

/* Into its slot; shared memory into the file as well, so that it has only to be mapped. */
static void decode(const struct worker *w, struct job *job, unsigned char *slot)
{
    if (decode_in_place(w, job))
        return;
    decode_job(w->fill, w->codec, job, slot);
    job->in_place = job->status == 0 && in_place_write(w->fill->config.state, job->block,
                                                       job->cluster, job->n_clusters, slot);
}

/* Some clusters of one block that are brought in for one reason. */
struct range {
    const struct block *block;
    uint64_t first, n;
    enum job_origin origin;
    bool own; /* zeros are about to be written */
};

static bool is_wanted(const struct fill *f, const struct range *r, uint64_t cluster)
{
    return r->origin == JOB_FILL ? needs_install(f, cluster) : is_pending(f, cluster);
}

/* ---- the limit on the rate ---- */

static uint64_t held_back_ns(struct fill *f)
{
    pthread_mutex_lock(&f->pace_lock);
    uint64_t ns = pace_wait_ns(&f->pace, clock_monotonic_ns());
    pthread_mutex_unlock(&f->pace_lock);
    return ns;
}

static void charge(struct fill *f, uint64_t bytes)
{
    pthread_mutex_lock(&f->pace_lock);
    pace_charge(&f->pace, clock_monotonic_ns(), bytes);
    pthread_mutex_unlock(&f->pace_lock);
}

/* ---- a run, a range ---- */

/* Decodes [cluster, cluster + n) of a range, all of them zeros or none (but for a huge page), into
 * a slot and submits it. False: stop. */
static bool submit_run(struct worker *w, const struct range *r, uint64_t cluster, uint32_t n)
{
    struct fill *f = w->fill;
    struct queue *q = f->config.queue;
    w->lap_ns = stage_lap(&f->stages.looking, w->lap_ns, 0);
    uint32_t slot = queue_take(q);
    w->lap_ns = stage_lap(&f->stages.for_slots, w->lap_ns, 0);
    if (slot == POOL_NONE)
        return false;
    struct job *job = &q->jobs[slot];
    *job = (struct job){.block = r->block,
                        .cluster = cluster,
                        .n_clusters = n,
                        .origin = r->origin,
                        .own = r->own,
                        .zero = image_is_zero(f->config.img, cluster, n)};
    if (!job->zero)
        decode(w, job, queue_buffer(q, slot));
    w->lap_ns = stage_lap(&f->stages.decoding, w->lap_ns, job->zero ? 0 : n * IMAGE_CLUSTER_BYTES);
    if (job->status == 0 || n == 1 || r->block->unit_bytes > IMAGE_CLUSTER_BYTES) {
        if (r->origin == JOB_FILL && !job->zero)
            charge(f, (uint64_t)n * IMAGE_CLUSTER_BYTES);
        queue_submit(q, slot);
        return !stopped(f);
    }
    /* The neighbours of a damaged cluster are sound: one by one. */
    queue_release(q, slot);
    bool go_on = true;
    for (uint32_t i = 0; i < n && go_on; i++)
        go_on = submit_run(w, r, cluster + i, 1);
    return go_on;
}

/* Submits what is wanted of a range in runs without gaps. A huge page goes as a whole: the range is
 * one. */
static bool submit_range(struct worker *w, const struct range *r)
{
    const struct fill *f = w->fill;
    uint64_t end = r->first + r->n;
    for (uint64_t at = r->first; at < end;) {
        if (!is_wanted(f, r, at)) {
            at++;
            continue;
        }
        if (r->block->unit_bytes > IMAGE_CLUSTER_BYTES)
            return submit_run(w, r, r->first, (uint32_t)r->n);
        bool zero = image_is_zero(f->config.img, at, 1);
        uint64_t to = at + 1;
        while (to < end && to - at < RUN_CLUSTERS && is_wanted(f, r, to) &&
               image_is_zero(f->config.img, to, 1) == zero)
            to++;
        if (!submit_run(w, r, at, (uint32_t)(to - at)))
            return false;
        at = to;
    }
    return true;
}

/* ---- ahead of a guest that reads in order ---- */

/* A run that the server has asked for. */
static bool bring_run(struct worker *w, uint64_t first)
{
    const struct block *b = blocks_find_cluster(w->fill->config.blocks, first);
    if (!b || b->unit_bytes > IMAGE_CLUSTER_BYTES)
        return true;
    struct range r = {.block = b, .first = first, .n = AHEAD_RUN, .origin = JOB_AHEAD};
    if (first + r.n > b->first_cluster + b->n_clusters) /* the block ends in it */
        r.n = b->first_cluster + b->n_clusters - first;
    return submit_range(w, &r);
}

/* All that is asked for at the moment. False: stop. */
static bool bring_ahead(struct worker *w)
{
    uint64_t first;
    while (ahead_take(w->fill->config.ahead, &first))
        if (!bring_run(w, first))
            return false;
    return !stopped(w->fill);
}

/* ---- what is prefetched ---- */

/* How many of the entries from `at` on are one range: clusters in a row that were first touched in
 * the same way. */
static uint64_t row_of(const uint64_t *entries, uint64_t n)
{
    uint64_t row = 1;
    while (row < n && entries[row] == entries[0] + row)
        row++;
    return row;
}

static bool prefetch_row(struct worker *w, uint64_t entry, uint64_t n)
{
    uint64_t cluster = WORKSET_CLUSTER(entry);
    const struct block *b = blocks_find_cluster(w->fill->config.blocks, cluster);
    if (!b)
        return true;
    struct range r = {.block = b,
                      .first = cluster,
                      .n = n,
                      .origin = JOB_PREFETCH,
                      .own = (entry & WORKSET_WRITE) != 0};
    if (b->unit_bytes > IMAGE_CLUSTER_BYTES) {
        uint64_t in_block = cluster - b->first_cluster;
        r.n = b->unit_bytes / IMAGE_CLUSTER_BYTES;
        r.first = cluster - in_block % r.n;
    } else if (cluster + n > b->first_cluster + b->n_clusters) {
        r.n = b->first_cluster + b->n_clusters - cluster;
        return submit_range(w, &r) && prefetch_row(w, entry + r.n, n - r.n);
    }
    return submit_range(w, &r);
}

static bool prefetch_some(struct worker *w, const uint64_t *entries, uint64_t n)
{
    for (uint64_t at = 0; at < n;) {
        uint64_t row = row_of(entries + at, n - at);
        if (!prefetch_row(w, entries[at], row))
            return false;
        at += row;
    }
    return true;
}

static bool run_prefetch(struct worker *w)
{
    struct fill *f = w->fill;
    const struct prefetch *p = f->config.prefetch;
    while (p) {
        uint64_t at = atomic_fetch_add(&f->prefetch_cursor, RUN_CLUSTERS);
        if (at >= p->n)
            break;
        uint64_t n = p->n - at < RUN_CLUSTERS ? p->n - at : RUN_CLUSTERS;
        if (!bring_ahead(w) || !prefetch_some(w, p->entries + at, n))
            return false;
    }
    queue_flush(f->config.queue);
    if (atomic_fetch_sub(&f->prefetch_working, 1) == 1)
        f->config.prefetched(f->config.opaque);
    return true;
}

/* ---- the rest ---- */

/* Does nothing for so long, or until something is asked for ahead. */
static void pause_for(struct worker *w, unsigned ms)
{
    struct fill *f = w->fill;
    queue_flush(f->config.queue);
    w->lap_ns = stage_lap(&f->stages.looking, w->lap_ns, 0);
    ahead_wait(f->config.ahead, ms);
    w->lap_ns = stage_lap(&f->stages.held_back, w->lap_ns, 0);
}

/* Waits until the limit on the rate lets one go on; what is asked for ahead is brought in
 * meanwhile. False: stop. */
static bool keep_pace(struct worker *w)
{
    while (bring_ahead(w)) {
        uint64_t ns = held_back_ns(w->fill);
        if (ns == 0)
            return true;
        pause_for(w, (unsigned)(ns / 1000000 + 1));
    }
    return false;
}

static void run_rest(struct worker *w)
{
    struct fill *f = w->fill;
    while (atomic_load(&f->stage) == STAGE_PREFETCH)
        futex_wait(&f->stage, STAGE_PREFETCH, 1000);
    w->lap_ns = clock_monotonic_ns();
    uint64_t last_until_ns = w->lap_ns + CALM_LAST_NS;
    calm_down(&f->calm, CALM_LAST);
    rest_begin(&w->rest);
    while (!stopped(f)) {
        unsigned rest_ms = last_until_ns ? rest_due_ms(&w->rest) : 0;
        if (rest_ms > 0)
            pause_for(w, rest_ms);
        if (!keep_pace(w))
            break;
        if (last_until_ns && w->lap_ns > last_until_ns) {
            last_until_ns = 0;
            calm_down(&f->calm, CALM_NICE);
        }
        struct range r = {.origin = JOB_FILL};
        if (!sweep_take(&f->sweep, &r.block, &r.first, &r.n))
            break;
        if (!submit_range(w, &r))
            break;
    }
    rest_end(&w->rest);
    if (!stopped(f) && atomic_fetch_sub(&f->all_working, 1) == 1)
        f->config.finished(f->config.opaque);
}

static void *run_worker(void *opaque)
{
    struct worker *w = opaque;
    calm_join(&w->fill->calm, w->number);
    w->lap_ns = clock_monotonic_ns();
    if (run_prefetch(w))
        run_rest(w);
    calm_leave(&w->fill->calm, w->number);
    codec_free(w->codec);
    free(w);
    return NULL;
}

static int start_worker(struct fill *f, unsigned number)
{
    struct worker *w = malloc(sizeof(*w));
    struct codec *codec = codec_new(1);
    if (!w || !codec) {
        free(w);
        codec_free(codec);
        return -ENOMEM;
    }
    *w = (struct worker){.fill = f, .number = number, .codec = codec};
    int rc = thread_start(&f->threads[number], run_worker, w);
    if (rc) {
        codec_free(codec);
        free(w);
    }
    return rc;
}

unsigned fill_choose_threads(unsigned wanted)
{
    long n = wanted ? (long)wanted : sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > (long)FILL_MAX_THREADS ? FILL_MAX_THREADS : (unsigned)n;
}

int fill_start(struct fill **out, const struct fill_config *config)
{
    struct fill *f = calloc(1, sizeof(*f));
    if (!f)
        return -ENOMEM;
    f->config = *config;
    f->pace_lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    f->pace.bytes_per_s = config->bytes_per_s;
    f->threads = calloc(config->n_threads, sizeof(*f->threads));
    if (!f->threads) {
        free(f);
        return -ENOMEM;
    }
    sweep_init(&f->sweep, config->blocks, RUN_CLUSTERS);
    atomic_init(&f->prefetch_working, config->n_threads);
    atomic_init(&f->all_working, config->n_threads);
    atomic_store(&config->ahead->calm, &f->calm);
    atomic_store(&config->state->ends, false);
    int rc = 0;
    for (unsigned i = 0; i < config->n_threads && rc == 0; i++) {
        rc = start_worker(f, i);
        f->n_threads += rc == 0;
    }
    if (rc) {
        fill_stop(f);
        return rc;
    }
    *out = f;
    return 0;
}

static void set_stage(struct fill *f, enum stage stage)
{
    atomic_store(&f->stage, stage);
    futex_wake(&f->stage, (int)f->n_threads);
}

void fill_hurry(struct fill *f, bool hurry)
{
    calm_hurry(&f->calm, hurry);
}

void fill_allow_all(struct fill *f)
{
    set_stage(f, STAGE_ALL);
}

const struct fill_stages *fill_stages(const struct fill *f)
{
    return &f->stages;
}

void fill_stop(struct fill *f)
{
    if (!f)
        return;
    set_stage(f, STAGE_STOP);
    atomic_store(&f->config.state->ends, true);
    ahead_wake(f->config.ahead);
    queue_cancel(f->config.queue);
    fill_hurry(f, true); /* one that nobody gives the CPU to would keep us waiting */
    for (unsigned i = 0; i < f->n_threads; i++)
        pthread_join(f->threads[i], NULL);
    free(f->threads);
    free(f);
}
