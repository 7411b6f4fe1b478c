/*
 * export_raw.c - decodes memory with many threads.
 *
 * The output is cut into pieces of 1 MiB. Workers take pieces in order. Into a file each worker
 * writes its own, and only pages that are not zero. For a stream a piece is put together in one of
 * a few slots and the main thread writes the slots in order; a worker that is a whole round of
 * slots ahead waits. Between the extents a stream has gaps, which are pieces, too.
 */
#include "tools/vmsnap/export_raw.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/progress.h"
#include "common/publish.h"
#include "common/thread.h"

#define PIECE_BYTES (1u << 20)
#define TICK_NS 100000000u

/* A stretch of the output that consists of whole pieces but for its end. */
struct stretch {
    uint64_t first_piece;
    uint64_t out_offset, bytes;
    const struct export_extent *extent; /* NULL: a gap */
};

struct slot {
    uint8_t *data;
    size_t bytes;
    bool ready;
};

struct job {
    struct export_raw *x;
    struct stretch *stretches;
    uint64_t n_stretches, n_pieces;
    struct slot *slots;
    unsigned n_slots;

    pthread_mutex_t lock; /* all below, and the results in *x */
    pthread_cond_t changed;
    uint64_t next_piece;  /* that nobody has taken yet */
    uint64_t pieces_done; /* file: by workers; stream: by the writer */
    uint64_t bytes_done;
    unsigned workers; /* that still run */
    int failure;
    struct error error;
};

struct worker {
    struct job *job;
    pthread_t thread;
    struct codec *codec;
    uint8_t cluster[IMAGE_CLUSTER_BYTES];
};

/* Keeps the first failure and ends all waits. */
static void fail(struct job *j, int r, const struct error *e)
{
    pthread_mutex_lock(&j->lock);
    if (j->failure == 0) {
        j->failure = r;
        j->error = *e;
    }
    pthread_cond_broadcast(&j->changed);
    pthread_mutex_unlock(&j->lock);
}

static int write_error(const struct export_raw *x, int err, uint64_t offset, struct error *e)
{
    int r = error_set(e, publish_exit_code(err), err, "writing %s at byte %llu", x->name,
                      (unsigned long long)offset);
    if (err == EFBIG)
        error_hint(e, "the guest-physical address space is wider than a file there may be; "
                      "--region exports one region by its own offsets");
    else if (err == EPIPE)
        error_hint(e, "the reader of the pipe has ended; see what it says");
    else
        publish_hint(e);
    return r;
}

static int write_at(const struct export_raw *x, const uint8_t *data, size_t len, uint64_t offset,
                    struct error *e)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = pwrite(x->fd, data + done, len - done, (off_t)(offset + done));
        if (n < 0 && errno != EINTR)
            return write_error(x, errno, offset + done, e);
        if (n > 0)
            done += (size_t)n;
    }
    return 0;
}

/* ---- workers ---- */

/* Writes `len` bytes at an output offset, pages of zeros left out. */
static int write_sparse(struct job *j, const uint8_t *data, size_t len, uint64_t offset,
                        struct error *e)
{
    uint64_t written = 0;
    int r = 0;
    for (size_t at = 0, end; at < len && r == 0; at = end) {
        size_t from = at;
        end = at;
        while (end < len) {
            size_t n = len - end < IMAGE_PAGE_BYTES ? len - end : IMAGE_PAGE_BYTES;
            bool zero = codec_is_zero(data + end, n);
            if (zero && end > from)
                break;
            end += n;
            if (zero)
                from = end;
        }
        r = end > from ? write_at(j->x, data + from, end - from, offset + from, e) : 0;
        written += end - from;
    }
    pthread_mutex_lock(&j->lock);
    j->x->written_bytes += written;
    pthread_mutex_unlock(&j->lock);
    return r;
}

/* Enters a poisoned page; the list keeps those of the lowest offsets. Caller holds the lock. */
static void add_poisoned(struct export_raw *x, uint64_t out_offset, uint32_t region,
                         uint64_t region_offset)
{
    uint64_t n = x->pages_poisoned++, at;
    if (n > EXPORT_POISON_NAMED - 1)
        n = EXPORT_POISON_NAMED - 1;
    if (x->pages_poisoned > EXPORT_POISON_NAMED && x->poisoned[n].out_offset <= out_offset)
        return;
    for (at = n; at > 0 && x->poisoned[at - 1].out_offset > out_offset; at--)
        x->poisoned[at] = x->poisoned[at - 1];
    x->poisoned[at].out_offset = out_offset;
    x->poisoned[at].region = region;
    x->poisoned[at].region_offset = region_offset;
}

/* The poisoned pages among bytes [from, to) of a region, all in one cluster; byte `from` goes to
 * `out_offset`. A page that is cut by the bounds counts. */
static void note_poison(struct job *j, uint32_t region, uint64_t mask, uint64_t cluster_offset,
                        uint64_t from, uint64_t to, uint64_t out_offset)
{
    pthread_mutex_lock(&j->lock);
    for (; mask; mask &= mask - 1) {
        uint64_t page = cluster_offset + (uint64_t)__builtin_ctzll(mask) * IMAGE_PAGE_BYTES;
        if (page + IMAGE_PAGE_BYTES > from && page < to)
            add_poisoned(j->x, page > from ? out_offset + (page - from) : out_offset, region, page);
    }
    pthread_mutex_unlock(&j->lock);
}

/* What a cluster holds of bytes [from, to) of a region, put where it belongs: into `slot` (of which
 * the bytes start at the same place) or into the file. */
static int produce_part(struct worker *w, const struct export_extent *extent, uint64_t from,
                        uint64_t to, uint8_t *slot, struct error *e)
{
    struct job *j = w->job;
    const struct image *img = j->x->img;
    uint32_t n_regions;
    const struct image_region *r = &image_regions(img, &n_regions)[extent->region];
    uint64_t cluster = r->first_cluster + from / IMAGE_CLUSTER_BYTES;
    uint64_t cluster_offset = from - from % IMAGE_CLUSTER_BYTES;
    uint64_t out_offset = extent->out_offset + (from - extent->region_offset);
    size_t len = (size_t)(to - from);
    uint64_t poison = image_cluster_poison(img, cluster);
    if (poison)
        note_poison(j, extent->region, poison, cluster_offset, from, to, out_offset);
    if (image_index_entry(img, cluster) == IMAGE_INDEX_ZERO) {
        if (slot)
            memset(slot, 0, len);
        return 0;
    }
    int ret = image_read_cluster(img, cluster, w->codec, w->cluster, e);
    if (ret < 0)
        return ret;
    const uint8_t *data = w->cluster + (from - cluster_offset);
    if (!slot)
        return write_sparse(j, data, len, out_offset, e);
    memcpy(slot, data, len);
    return 0;
}

static const struct stretch *find_stretch(const struct job *j, uint64_t piece)
{
    uint64_t low = 0, high = j->n_stretches;
    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;
        if (j->stretches[middle].first_piece <= piece)
            low = middle;
        else
            high = middle;
    }
    return &j->stretches[low];
}

/* Makes one piece. *bytes is its length. */
static int produce_piece(struct worker *w, uint64_t piece, uint8_t *slot, size_t *bytes,
                         struct error *e)
{
    const struct stretch *s = find_stretch(w->job, piece);
    uint64_t at = (piece - s->first_piece) * PIECE_BYTES;
    *bytes = s->bytes - at < PIECE_BYTES ? (size_t)(s->bytes - at) : PIECE_BYTES;
    if (!s->extent) { /* only a stream has gaps */
        if (slot)
            memset(slot, 0, *bytes);
        return 0;
    }
    uint64_t from = s->extent->region_offset + at, end = from + *bytes;
    int r = 0;
    while (from < end && r == 0) {
        uint64_t to = from - from % IMAGE_CLUSTER_BYTES + IMAGE_CLUSTER_BYTES;
        if (to > end)
            to = end;
        r = produce_part(w, s->extent, from, to, slot, e);
        if (slot)
            slot += to - from;
        from = to;
    }
    return r;
}

/* Takes the next piece, once its slot is free. False: there is none, or all is to end. */
static bool take_piece(struct job *j, uint64_t *piece)
{
    pthread_mutex_lock(&j->lock);
    while (j->failure == 0 && j->slots && j->next_piece < j->n_pieces &&
           j->next_piece >= j->pieces_done + j->n_slots)
        pthread_cond_wait(&j->changed, &j->lock);
    bool found = j->failure == 0 && j->next_piece < j->n_pieces;
    if (found)
        *piece = j->next_piece++;
    pthread_mutex_unlock(&j->lock);
    return found;
}

static void hand_over(struct job *j, struct slot *slot, size_t bytes)
{
    pthread_mutex_lock(&j->lock);
    if (slot) {
        slot->bytes = bytes;
        slot->ready = true;
        pthread_cond_broadcast(&j->changed);
    } else {
        j->pieces_done++;
        j->bytes_done += bytes;
    }
    pthread_mutex_unlock(&j->lock);
}

static void *work(void *opaque)
{
    struct worker *w = opaque;
    struct job *j = w->job;
    uint64_t piece;
    while (take_piece(j, &piece)) {
        struct slot *slot = j->slots ? &j->slots[piece % j->n_slots] : NULL;
        struct error e = {0};
        size_t bytes = 0;
        int r = produce_piece(w, piece, slot ? slot->data : NULL, &bytes, &e);
        if (r < 0)
            fail(j, r, &e);
        else
            hand_over(j, slot, bytes);
    }
    pthread_mutex_lock(&j->lock);
    j->workers--;
    pthread_cond_broadcast(&j->changed);
    pthread_mutex_unlock(&j->lock);
    return NULL;
}

/* ---- the main thread ---- */

static void check_interrupt(struct job *j)
{
    int number = (int)*j->x->interrupted;
    if (number == 0)
        return;
    struct error e = {0};
    error_set(&e, number == SIGINT ? VMSNAP_EXIT_SIGINT : VMSNAP_EXIT_SIGTERM, 0,
              "interrupted; %s is not complete", j->x->name);
    error_hint(&e, "export it again; %s",
               j->x->stream ? "the reader of the pipe has got a part" : "nothing was published");
    fail(j, -EINTR, &e);
}

/* Waits for a change, but not for long. Caller holds the lock. */
static void wait_a_tick(struct job *j)
{
    uint64_t until = clock_monotonic_ns() + TICK_NS;
    struct timespec t = {.tv_sec = (time_t)(until / 1000000000u),
                         .tv_nsec = (long)(until % 1000000000u)};
    pthread_cond_clockwait(&j->changed, &j->lock, CLOCK_MONOTONIC, &t);
}

/* Writes a piece to a stream. An interrupt ends also a write that blocks (no SA_RESTART). */
static void write_slot(struct job *j, const struct slot *slot)
{
    uint64_t offset = j->bytes_done; /* written by this thread only */
    for (size_t done = 0; done < slot->bytes && *j->x->interrupted == 0;) {
        ssize_t n = write(j->x->fd, slot->data + done, slot->bytes - done);
        if (n < 0 && errno != EINTR) {
            struct error e = {0};
            fail(j, write_error(j->x, errno, offset + done, &e), &e);
            return;
        }
        if (n > 0)
            done += (size_t)n;
    }
}

/* The next slot if it is there within a tick. */
static struct slot *next_slot(struct job *j)
{
    struct slot *slot = &j->slots[j->pieces_done % j->n_slots];
    pthread_mutex_lock(&j->lock);
    if (!slot->ready && j->failure == 0)
        wait_a_tick(j);
    bool ready = slot->ready && j->failure == 0;
    pthread_mutex_unlock(&j->lock);
    return ready ? slot : NULL;
}

static void drain_slot(struct job *j)
{
    struct slot *slot = next_slot(j);
    if (!slot)
        return;
    write_slot(j, slot);
    pthread_mutex_lock(&j->lock);
    slot->ready = false;
    j->pieces_done++;
    j->bytes_done += slot->bytes;
    j->x->written_bytes += slot->bytes;
    pthread_cond_broadcast(&j->changed);
    pthread_mutex_unlock(&j->lock);
}

/* Until all is done or has failed, and no worker is left. */
static void attend(struct job *j)
{
    struct progress progress;
    uint64_t total = 0, done;
    for (uint64_t i = 0; i < j->n_stretches; i++)
        total += j->stretches[i].bytes;
    progress_start(&progress, "exported", j->x->progress);
    for (bool busy = true; busy;) {
        if (j->slots)
            drain_slot(j);
        check_interrupt(j);
        pthread_mutex_lock(&j->lock);
        if (!j->slots && j->workers > 0)
            wait_a_tick(j);
        busy = j->workers > 0 || (j->failure == 0 && j->pieces_done < j->n_pieces);
        done = j->bytes_done;
        pthread_mutex_unlock(&j->lock);
        progress_update(&progress, done, total, 0);
    }
    progress_finish(&progress);
}

static struct worker *start_worker(struct job *j)
{
    struct worker *w = calloc(1, sizeof(*w));
    if (!w)
        return NULL;
    w->job = j;
    w->codec = codec_new(1);
    j->workers++; /* it is not seen running yet */
    if (w->codec && thread_start(&w->thread, work, w) == 0)
        return w;
    j->workers--;
    codec_free(w->codec);
    free(w);
    return NULL;
}

static int run_workers(struct job *j)
{
    unsigned n = 0, wanted = j->x->n_threads ? j->x->n_threads : 1;
    struct worker **workers = calloc(wanted, sizeof(*workers));
    if (!workers)
        return -ENOMEM;
    pthread_mutex_lock(&j->lock);
    while (n < wanted && (workers[n] = start_worker(j)))
        n++;
    pthread_mutex_unlock(&j->lock);
    if (n > 0)
        attend(j);
    for (unsigned i = 0; i < n; i++) {
        pthread_join(workers[i]->thread, NULL);
        codec_free(workers[i]->codec);
        free(workers[i]);
    }
    free(workers);
    return n > 0 ? 0 : -ENOMEM;
}

/* ---- setting up ---- */

static void add_stretch(struct job *j, uint64_t out_offset, uint64_t bytes,
                        const struct export_extent *extent)
{
    j->stretches[j->n_stretches++] = (struct stretch){
        .first_piece = j->n_pieces, .out_offset = out_offset, .bytes = bytes, .extent = extent};
    j->n_pieces += bytes / PIECE_BYTES + (bytes % PIECE_BYTES != 0);
}

static int make_stretches(struct job *j)
{
    struct export_raw *x = j->x;
    j->stretches = calloc(2 * x->n_extents + 1, sizeof(*j->stretches));
    if (!j->stretches)
        return -ENOMEM;
    for (uint64_t i = 0; i < x->n_extents; i++) {
        const struct export_extent *extent = &x->extents[i];
        if (x->stream && extent->out_offset > x->out_bytes)
            add_stretch(j, x->out_bytes, extent->out_offset - x->out_bytes, NULL);
        add_stretch(j, extent->out_offset, extent->bytes, extent);
        x->out_bytes = extent->out_offset + extent->bytes;
    }
    return 0;
}

static int make_slots(struct job *j)
{
    j->n_slots = 2 * j->x->n_threads + 2;
    j->slots = calloc(j->n_slots, sizeof(*j->slots));
    if (!j->slots)
        return -ENOMEM;
    for (unsigned i = 0; i < j->n_slots; i++)
        if (!(j->slots[i].data = malloc(PIECE_BYTES)))
            return -ENOMEM;
    return 0;
}

static void free_job(struct job *j)
{
    for (unsigned i = 0; j->slots && i < j->n_slots; i++)
        free(j->slots[i].data);
    free(j->slots);
    free(j->stretches);
    pthread_mutex_destroy(&j->lock);
    pthread_cond_destroy(&j->changed);
}

/* A sparse file of the whole length; addresses go beyond what a file offset can be. */
static int set_length(const struct export_raw *x, struct error *e)
{
    if (x->out_bytes > INT64_MAX)
        return write_error(x, EFBIG, INT64_MAX, e);
    return ftruncate(x->fd, (off_t)x->out_bytes) < 0 ? write_error(x, errno, x->out_bytes, e) : 0;
}

int export_raw(struct export_raw *x, struct error *e)
{
    struct job j = {.x = x, .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    x->out_bytes = x->written_bytes = x->pages_poisoned = 0;
    int r = make_stretches(&j);
    if (r == 0 && x->stream)
        r = make_slots(&j);
    if (r == 0 && !x->stream)
        r = j.failure = set_length(x, &j.error);
    if (r == 0)
        r = run_workers(&j);
    if (j.failure) {
        r = j.failure;
        if (e)
            *e = j.error;
    } else if (r < 0) {
        error_set(e, VMSNAP_EXIT_FAILED, -r, "writing %s", x->name);
    }
    free_job(&j);
    return r;
}
