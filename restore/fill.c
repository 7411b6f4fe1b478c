#include "restore/fill.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "common/codec.h"
#include "common/futex.h"
#include "common/thread.h"

/* Clusters that travel together: 64 KiB, installed in about 21 us, is the longest that a fault then
 * waits for the server. */
#define RUN_CLUSTERS 4u

/* Below the guest's own threads: a busy guest keeps its CPUs. */
#define WORKER_NICE 10

enum stage { STAGE_HOT, STAGE_ALL, STAGE_STOP };

struct fill {
    struct fill_config config;
    pthread_t *threads;
    unsigned n_threads;
    atomic_uint stage; /* futex word: enum stage */
    atomic_ullong hot_cursor;
    atomic_uint hot_working; /* workers that are not through with the hot list */
    atomic_uint all_working;
    /* The background pass: a position is a unit of a block, counted over all blocks. */
    atomic_ullong cursor;
    uint64_t n_positions;
};

/* The clusters that one position of the background pass covers. */
static uint64_t position_clusters(const struct block *b)
{
    uint64_t unit = b->unit_bytes / IMAGE_CLUSTER_BYTES;
    return unit > RUN_CLUSTERS ? unit : RUN_CLUSTERS;
}

static uint64_t block_positions(const struct block *b)
{
    return (b->n_clusters + position_clusters(b) - 1) / position_clusters(b);
}

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

static bool is_zero(const struct image *img, uint64_t cluster)
{
    return image_index_entry(img, cluster) == IMAGE_INDEX_ZERO;
}

static bool is_pending(const struct fill *f, uint64_t cluster)
{
    return page_state_get(f->config.state, cluster) == CLUSTER_PENDING;
}

/* Whether the background pass must install it: an absent page reads as zeros by itself once the
 * registration is gone, so zeros cost nothing; a poisoned page must be put there. */
static bool needs_install(const struct fill *f, uint64_t cluster)
{
    return is_pending(f, cluster) &&
           (!is_zero(f->config.img, cluster) || image_cluster_poison(f->config.img, cluster));
}

/* Decodes a job's clusters into its slot, up to the first that can't be read. */
static void decode_job(const struct fill *f, struct codec *codec, struct job *job,
                       unsigned char *to)
{
    struct error e = {0};
    for (uint32_t i = 0; i < job->n_clusters && job->status == 0; i++) {
        job->damaged = job->cluster + i;
        job->status = image_read_cluster(f->config.img, job->damaged, codec,
                                         to + (size_t)i * IMAGE_CLUSTER_BYTES, &e);
    }
    if (job->status) {
        strncpy(job->cause, e.message, sizeof(job->cause) - 1);
        job->cause[sizeof(job->cause) - 1] = '\0';
    }
}

/* Decodes [cluster, cluster + n) into a slot and submits it. False: stop. */
static bool submit_run(struct fill *f, struct codec *codec, const struct block *b, uint64_t cluster,
                       uint32_t n, enum job_origin origin)
{
    struct queue *q = f->config.queue;
    uint32_t slot = queue_take(q);
    if (slot == POOL_NONE)
        return false;
    struct job *job = &q->jobs[slot];
    *job = (struct job){.block = b, .cluster = cluster, .n_clusters = n, .origin = origin};
    job->zero = n == 1 && is_zero(f->config.img, cluster);
    if (!job->zero)
        decode_job(f, codec, job, queue_buffer(q, slot));
    if (job->status == 0 || n == 1 || b->unit_bytes > IMAGE_CLUSTER_BYTES) {
        queue_submit(q, slot);
        return !stopped(f);
    }
    /* The neighbours of a damaged cluster are sound: one by one. */
    queue_release(q, slot);
    bool go_on = true;
    for (uint32_t i = 0; i < n && go_on; i++)
        go_on = submit_run(f, codec, b, cluster + i, 1, origin);
    return go_on;
}

/* Submits what is to be installed of [first, first + n) in runs without gaps. A huge page goes as a
 * whole. */
static bool submit_position(struct fill *f, struct codec *codec, const struct block *b,
                            uint64_t first, uint64_t n)
{
    bool whole = b->unit_bytes > IMAGE_CLUSTER_BYTES;
    for (uint64_t at = 0; at < n;) {
        if (!needs_install(f, first + at)) {
            at++;
            continue;
        }
        if (whole)
            return submit_run(f, codec, b, first, (uint32_t)n, JOB_FILL);
        uint64_t end = at + 1;
        while (end < n && needs_install(f, first + end))
            end++;
        if (!submit_run(f, codec, b, first + at, (uint32_t)(end - at), JOB_FILL))
            return false;
        at = end;
    }
    return true;
}

static bool fill_position(struct fill *f, struct codec *codec, uint64_t position)
{
    const struct blocks *blocks = f->config.blocks;
    for (uint32_t i = 0; i < blocks->count; i++) {
        const struct block *b = &blocks->items[i];
        uint64_t n = block_positions(b);
        if (position >= n) {
            position -= n;
            continue;
        }
        uint64_t at = position * position_clusters(b);
        uint64_t len = b->n_clusters - at;
        if (len > position_clusters(b))
            len = position_clusters(b);
        return submit_position(f, codec, b, b->first_cluster + at, len);
    }
    return false;
}

static bool prefetch_entry(struct fill *f, struct codec *codec, const struct image_hot *hot)
{
    const struct block *b = blocks_find_cluster(f->config.blocks, hot->cluster);
    if (!b || !is_pending(f, hot->cluster))
        return true;
    uint64_t unit = b->unit_bytes / IMAGE_CLUSTER_BYTES;
    uint64_t first = hot->cluster - (hot->cluster - b->first_cluster) % unit;
    return submit_run(f, codec, b, first, (uint32_t)unit, JOB_PREFETCH);
}

static bool run_hot_stage(struct fill *f, struct codec *codec)
{
    uint64_t n;
    const struct image_hot *hot = image_hot_list(f->config.img, &n);
    while (f->config.prefetch_hot) {
        uint64_t at = atomic_fetch_add(&f->hot_cursor, 1);
        if (at >= n)
            break;
        if (!prefetch_entry(f, codec, &hot[at]))
            return false;
    }
    if (atomic_fetch_sub(&f->hot_working, 1) == 1)
        f->config.prefetched(f->config.opaque);
    return true;
}

static bool run_all_stage(struct fill *f, struct codec *codec)
{
    while (atomic_load(&f->stage) == STAGE_HOT)
        futex_wait(&f->stage, STAGE_HOT, 1000);
    while (!stopped(f)) {
        uint64_t at = atomic_fetch_add(&f->cursor, 1);
        if (at >= f->n_positions)
            break;
        if (!fill_position(f, codec, at))
            return false;
    }
    if (!stopped(f) && atomic_fetch_sub(&f->all_working, 1) == 1)
        f->config.finished(f->config.opaque);
    return true;
}

struct worker {
    struct fill *fill;
    struct codec *codec;
};

static void *run_worker(void *opaque)
{
    struct worker w = *(struct worker *)opaque;
    free(opaque);
    setpriority(PRIO_PROCESS, 0, WORKER_NICE); /* on Linux: of this thread alone */
    if (run_hot_stage(w.fill, w.codec))
        run_all_stage(w.fill, w.codec);
    codec_free(w.codec);
    return NULL;
}

static int start_worker(struct fill *f, pthread_t *thread)
{
    struct worker *w = malloc(sizeof(*w));
    struct codec *codec = codec_new(1);
    if (!w || !codec) {
        free(w);
        codec_free(codec);
        return -ENOMEM;
    }
    *w = (struct worker){.fill = f, .codec = codec};
    int rc = thread_start(thread, run_worker, w);
    if (rc) {
        codec_free(codec);
        free(w);
    }
    return rc;
}

int fill_start(struct fill **out, const struct fill_config *config)
{
    struct fill *f = calloc(1, sizeof(*f));
    if (!f)
        return -ENOMEM;
    f->config = *config;
    f->threads = calloc(config->n_threads, sizeof(*f->threads));
    if (!f->threads) {
        free(f);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < config->blocks->count; i++)
        f->n_positions += block_positions(&config->blocks->items[i]);
    atomic_init(&f->hot_working, config->n_threads);
    atomic_init(&f->all_working, config->n_threads);
    int rc = 0;
    for (unsigned i = 0; i < config->n_threads && rc == 0; i++) {
        rc = start_worker(f, &f->threads[i]);
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

void fill_allow_all(struct fill *f)
{
    set_stage(f, STAGE_ALL);
}

void fill_stop(struct fill *f)
{
    if (!f)
        return;
    set_stage(f, STAGE_STOP);
    queue_cancel(f->config.queue);
    for (unsigned i = 0; i < f->n_threads; i++)
        pthread_join(f->threads[i], NULL);
    free(f->threads);
    free(f);
}
