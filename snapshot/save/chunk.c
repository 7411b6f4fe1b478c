/*
 * Theory of operation
 *
 * Copy first, take by compare-and-swap after: whoever loses drops its copy, so a fault never waits
 * for this. A batch takes the buffers that are there, at least one; it waits only for the first,
 * when it holds nothing that anybody else could be waiting for, and never takes the fault thread's
 * reserve. Having waited, it looks again at what is present: a page that was, and that the guest
 * has had back and thrown away since, must not be touched.
 */
#include "snapshot/save/chunk.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>

#include "common/target/region_look.h"

#define BATCH_CLUSTERS 32u
/* Where the compressors are what is slow, buffers come back one by one: without this pause each
 * call copied three clusters (measured), and looked again for each. They have the whole pool to
 * work on meanwhile. */
#define REFILL_MS 2
#define TICK_MS 50u /* while there is no buffer */

struct chunk_saver {
    struct capture *capture;
    struct image_writer *writer;
    enum chunk_time time;
    int (*tick)(void *opaque); /* may be NULL */
    void *opaque;
    struct region_look look;
    uint64_t wanted[CHUNK_CLUSTERS];
    unsigned n_wanted;
    uint64_t batch[BATCH_CLUSTERS];
    uint32_t buffers[BATCH_CLUSTERS];
    struct region_piece pieces[BATCH_CLUSTERS];
    struct captured captured[BATCH_CLUSTERS];
};

struct chunk_saver *chunk_saver_new(struct capture *c, struct image_writer *writer,
                                    enum chunk_time time)
{
    struct chunk_saver *s = calloc(1, sizeof(*s));
    if (s) {
        s->capture = c;
        s->writer = writer;
        s->time = time;
    }
    return s;
}

void chunk_saver_free(struct chunk_saver *s)
{
    free(s);
}

void chunk_saver_watch(struct chunk_saver *s, int (*tick)(void *opaque), void *opaque)
{
    s->tick = tick;
    s->opaque = opaque;
}

void chunk_saver_begin(struct chunk_saver *s)
{
    s->look.region = NULL;
}

/* Still to be saved by us. */
static bool is_wanted(const struct chunk_saver *s, uint64_t cluster)
{
    const struct cluster_map *m = &s->capture->map;
    return s->time == CHUNK_BEFORE ? cluster_state(m, cluster) == CLUSTER_FROZEN
                                   : cluster_is_open(m, cluster);
}

static bool take(struct chunk_saver *s, uint64_t cluster)
{
    struct cluster_map *m = &s->capture->map;
    return s->time == CHUNK_BEFORE ? cluster_save_early(m, cluster) : cluster_save(m, cluster);
}

/*
 * Waits until the fault thread has looked at every event that it has read. What was absent before
 * may have been discarded by a sender that such an event let go; now that is known, as a failure.
 * (A page is whole or absent: a copy is never of something in between.)
 */
static bool settle(const struct capture *c, const struct cluster_range *range)
{
    atomic_uint *events_turn = &range->shard->events_turn;
    unsigned turn = atomic_load(events_turn);
    while ((turn & 1) && atomic_load(events_turn) == turn && !capture_failed(c))
        sched_yield();
    return !capture_failed(c);
}

static bool look(struct chunk_saver *s, const struct cluster_range *range, uint64_t from,
                 uint64_t to)
{
    struct capture *c = s->capture;
    uint64_t offset = cluster_offset(range, from);
    uint64_t bytes = cluster_offset(range, to - 1) + cluster_bytes(range, to - 1) - offset;
    if (s->look.region != range->region)
        region_look_begin(&s->look, range->region, c->target);
    int ret = region_look_at(&s->look, offset, (unsigned)(bytes / IMAGE_PAGE_BYTES));
    if (ret)
        capture_fail(c, CAPTURE_READ, ret, cluster_hva(range, from));
    return ret == 0;
}

/* The cluster's pages in the look. */
static struct region_piece piece_of(const struct chunk_saver *s, const struct cluster_range *range,
                                    uint64_t cluster)
{
    uint64_t offset = cluster_offset(range, cluster) - s->look.offset;
    return (struct region_piece){.first_page = (unsigned)(offset / IMAGE_PAGE_BYTES),
                                 .n_pages = cluster_bytes(range, cluster) / IMAGE_PAGE_BYTES};
}

static bool is_zero(const struct chunk_saver *s, const struct region_piece *p)
{
    for (unsigned i = 0; i < p->n_pages; i++)
        if (s->look.place[p->first_page + i] != PAGE_ZERO)
            return false;
    return true;
}

/* Notes the clusters that are zero, lists those that are to be copied. */
static void sort_out(struct chunk_saver *s, const struct cluster_range *range, uint64_t from,
                     uint64_t to)
{
    s->n_wanted = 0;
    for (uint64_t cluster = from; cluster < to; cluster++) {
        if (!is_wanted(s, cluster))
            continue;
        struct region_piece p = piece_of(s, range, cluster);
        if (!is_zero(s, &p))
            s->wanted[s->n_wanted++] = cluster;
        else if (take(s, cluster))
            image_writer_add_zero(s->writer, cluster);
    }
}

/* Waits for one. A sink that takes nothing may have all of them. */
static uint32_t wait_for_buffer(struct chunk_saver *s)
{
    struct pool *pool = s->capture->pool;
    uint32_t buffer;
    do
        buffer = pool_take_within(pool, POOL_SWEEP, TICK_MS);
    while (buffer == POOL_NONE && !pool_is_cancelled(pool) && !(s->tick && s->tick(s->opaque)));
    return buffer;
}

/* Takes what buffers there are, at most `max`. *waited: it took a while. 0: the snapshot has
 * failed, or is given up. */
static unsigned take_buffers(struct chunk_saver *s, unsigned max, bool *waited)
{
    struct pool *pool = s->capture->pool;
    unsigned n = pool_try_take_many(pool, POOL_SWEEP, s->buffers, max);
    *waited = n == 0;
    if (n == 0) { /* the compressors have plenty: let more than one come back */
        poll(NULL, 0, REFILL_MS);
        n = pool_try_take_many(pool, POOL_SWEEP, s->buffers, max);
    }
    if (n > 0)
        return n;
    s->buffers[0] = wait_for_buffer(s);
    if (s->buffers[0] == POOL_NONE)
        return 0;
    return 1 + pool_try_take_many(pool, POOL_SWEEP, s->buffers + 1, max - 1);
}

/* The next of the wanted clusters that are frozen still, from *at on, into s->batch. */
static unsigned pick_batch(struct chunk_saver *s, unsigned *at)
{
    unsigned n = 0;
    for (; *at < s->n_wanted && n < BATCH_CLUSTERS; (*at)++)
        if (is_wanted(s, s->wanted[*at]))
            s->batch[n++] = s->wanted[*at];
    return n;
}

/* Copies the first n of s->batch into s->buffers. */
static bool copy_batch(struct chunk_saver *s, const struct cluster_range *range, unsigned n,
                       bool look_again)
{
    int ret = look_again ? region_look_at(&s->look, s->look.offset, s->look.n_pages) : 0;
    if (ret) {
        capture_fail(s->capture, CAPTURE_READ, ret, cluster_hva(range, s->batch[0]));
        return false;
    }
    for (unsigned i = 0; i < n; i++) {
        s->pieces[i] = piece_of(s, range, s->batch[i]);
        s->pieces[i].to = pool_memory(s->capture->pool, s->buffers[i]);
    }
    region_look_read(&s->look, s->pieces, n);
    return settle(s->capture, range);
}

/* True when the copy is to be kept. Before the instant nothing is lost by leaving a cluster for
 * later; poison is left since there is one list of it, which knows of no second copy. */
static bool is_good(struct chunk_saver *s, const struct cluster_range *range, uint64_t cluster,
                    const struct region_piece *p)
{
    if (s->time == CHUNK_BEFORE)
        return !p->err && !p->poisoned;
    /* An error, and not open: a fault has saved it, and it may well be gone since. */
    if (p->err && is_wanted(s, cluster))
        capture_fail(s->capture, CAPTURE_READ, p->err, cluster_hva(range, cluster));
    return !p->err;
}

/* Takes the clusters whose copies are good; the others' buffers go back. */
static bool take_batch(struct chunk_saver *s, const struct cluster_range *range, unsigned n)
{
    struct capture *c = s->capture;
    unsigned kept = 0;
    for (unsigned i = 0; i < n; i++) {
        uint32_t buffer = s->buffers[i];
        const struct region_piece *p = &s->pieces[i];
        if (!is_good(s, range, s->batch[i], p) || !take(s, s->batch[i])) {
            pool_put(c->pool, buffer);
            continue;
        }
        s->buffers[kept] = buffer;
        s->captured[kept++] = (struct captured){.cluster = s->batch[i],
                                                .bytes = p->n_pages * IMAGE_PAGE_BYTES,
                                                .poisoned = (uint32_t)p->poisoned};
    }
    encoder_submit_many(c->encoder, s->buffers, s->captured, kept);
    if (s->time == CHUNK_BEFORE)
        c->clusters_precopied += kept;
    return !capture_failed(c);
}

/* Saves the first n of s->batch, or as many as there are buffers for. Returns how
 * many; 0: failed. */
static unsigned save_batch(struct chunk_saver *s, const struct cluster_range *range, unsigned n)
{
    bool waited;
    struct capture_stages *stages = &s->capture->stages;
    uint64_t lap = clock_monotonic_ns();
    n = take_buffers(s, n, &waited);
    lap = stage_lap(&stages->for_buffers, lap, 0);
    if (n == 0)
        return 0;
    if (!copy_batch(s, range, n, waited)) {
        for (unsigned i = 0; i < n; i++)
            pool_put(s->capture->pool, s->buffers[i]);
        return 0;
    }
    bool good = take_batch(s, range, n);
    stage_lap(&stages->copying, lap, (uint64_t)n * IMAGE_CLUSTER_BYTES);
    return good ? n : 0;
}

bool chunk_save(struct chunk_saver *s, const struct cluster_range *range, uint64_t from,
                uint64_t to)
{
    uint64_t first = from;
    while (first < to && !is_wanted(s, first))
        first++;
    if (first == to)
        return true;
    uint64_t lap = clock_monotonic_ns();
    if (!look(s, range, from, to) || !settle(s->capture, range))
        return false;
    sort_out(s, range, from, to);
    stage_lap(&s->capture->stages.looking, lap, 0);
    for (unsigned at = 0, n; (n = pick_batch(s, &at)) > 0;) {
        unsigned done = save_batch(s, range, n);
        if (done == 0)
            return false;
        while (done < n) /* go back to the first that had no buffer */
            if (s->wanted[--at] == s->batch[done])
                break;
    }
    return true;
}
