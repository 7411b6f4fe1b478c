#include "snapshot/save/encode.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "common/clock.h"
#include "common/codec.h"
#include "common/futex.h"
#include "common/ring.h"
#include "common/thread.h"

/* Compressors give way to the guest's vCPUs: a slower image, not a slower guest. */
#define ENCODER_NICE 5

struct encoder {
    struct pool *pool;
    struct image_writer *writer;
    int level;
    struct ring queue;
    struct captured *captured; /* by buffer number */
    atomic_uint submitted;     /* futex word */
    atomic_int sleepers;
    atomic_bool no_more;
    atomic_bool cancelled;
    atomic_int error;
    struct encoder_stages stages;
    pthread_mutex_t poison_lock;
    struct image_poison *poison;
    uint64_t n_poison, poison_room;
    pthread_t *threads;
    unsigned n_threads;
};

static void note_error(struct encoder *enc, int err)
{
    int none = 0;
    if (err && atomic_compare_exchange_strong(&enc->error, &none, err))
        pool_cancel(enc->pool); /* whoever waits for a buffer would wait for ever */
}

static int note_poison(struct encoder *enc, const struct captured *c)
{
    int ret = 0;
    pthread_mutex_lock(&enc->poison_lock);
    if (enc->n_poison == enc->poison_room) {
        uint64_t room = enc->poison_room ? enc->poison_room * 2 : 64;
        struct image_poison *more = realloc(enc->poison, room * sizeof(*more));
        if (more) {
            enc->poison = more;
            enc->poison_room = room;
        } else {
            ret = -ENOMEM;
        }
    }
    if (!ret)
        enc->poison[enc->n_poison++] = (struct image_poison){c->cluster, c->poisoned};
    pthread_mutex_unlock(&enc->poison_lock);
    return ret;
}

static unsigned count_nonzero_pages(const unsigned char *data, uint32_t bytes)
{
    unsigned n = 0;
    for (uint32_t at = 0; at < bytes; at += IMAGE_PAGE_BYTES)
        n += !codec_is_zero(data + at, IMAGE_PAGE_BYTES);
    return n;
}

static int encode_one(struct encoder *enc, struct codec *codec, unsigned char *record,
                      uint32_t buffer)
{
    const struct captured *c = &enc->captured[buffer];
    unsigned char *data = pool_memory(enc->pool, buffer);
    int ret = c->poisoned ? note_poison(enc, c) : 0;
    if (ret)
        return ret;
    uint64_t from = clock_monotonic_ns();
    unsigned stored = count_nonzero_pages(data, c->bytes);
    from = stage_lap(&enc->stages.looking, from, c->bytes);
    if (stored == 0) {
        image_writer_add_zero(enc->writer, c->cluster);
        return 0;
    }
    int frame = codec_encode(codec, data, c->bytes, record + sizeof(struct image_record));
    if (frame < 0)
        return frame;
    from = stage_lap(&enc->stages.packing, from, c->bytes);
    ret = image_writer_add(enc->writer, c->cluster, record, (uint32_t)frame, stored);
    stage_lap(&enc->stages.appending, from, (uint32_t)frame);
    return ret;
}

/* The next buffer to encode. False: there will be no more. */
static bool next_buffer(struct encoder *enc, uint32_t *buffer)
{
    for (;;) {
        if (atomic_load(&enc->cancelled))
            return false;
        if (ring_pop(&enc->queue, buffer))
            return true;
        unsigned seen = atomic_load(&enc->submitted);
        bool last = atomic_load(&enc->no_more);
        atomic_fetch_add(&enc->sleepers, 1);
        atomic_thread_fence(memory_order_seq_cst);
        bool got = ring_pop(&enc->queue, buffer);
        if (!got && !last) {
            uint64_t from = clock_monotonic_ns();
            futex_wait(&enc->submitted, seen, 1000);
            stage_lap(&enc->stages.waiting, from, 0);
        }
        atomic_fetch_sub(&enc->sleepers, 1);
        if (got)
            return true;
        if (last)
            return false;
    }
}

static void *compressor(void *opaque)
{
    struct encoder *enc = opaque;
    prctl(PR_SET_NAME, "vmsnap-encode");
    setpriority(PRIO_PROCESS, 0, ENCODER_NICE);
    struct codec *codec = codec_new(enc->level);
    unsigned char *record = malloc(sizeof(struct image_record) + codec_frame_max());
    if (!codec || !record)
        note_error(enc, -ENOMEM);
    uint32_t buffer;
    while (next_buffer(enc, &buffer)) {
        if (!atomic_load(&enc->error))
            note_error(enc, encode_one(enc, codec, record, buffer));
        pool_put(enc->pool, buffer);
    }
    free(record);
    codec_free(codec);
    return NULL;
}

int encoder_open(struct encoder **out, struct pool *pool, struct image_writer *writer,
                 unsigned n_threads, int level, struct error *e)
{
    struct encoder *enc = calloc(1, sizeof(*enc));
    if (!enc)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot start the compressors");
    enc->pool = pool;
    enc->writer = writer;
    enc->level = level;
    pthread_mutex_init(&enc->poison_lock, NULL);
    enc->captured = calloc(pool->n_buffers, sizeof(*enc->captured));
    enc->threads = calloc(n_threads, sizeof(*enc->threads));
    int ret = ring_init(&enc->queue, (size_t)pool->n_buffers * 4);
    if (!ret && (!enc->captured || !enc->threads))
        ret = -ENOMEM;
    while (!ret && enc->n_threads < n_threads) {
        ret = thread_start(&enc->threads[enc->n_threads], compressor, enc);
        if (!ret)
            enc->n_threads++;
    }
    if (ret) {
        encoder_cancel(enc);
        encoder_close(enc);
        return error_set(e, VMSNAP_EXIT_FAILED, -ret, "cannot start the compressors");
    }
    *out = enc;
    return 0;
}

static void push(struct encoder *enc, uint32_t buffer, const struct captured *captured)
{
    enc->captured[buffer] = *captured;
    /* There is a place for every buffer four times over, but a place is free again only when its
     * last taker has finished its two stores: one that was preempted between them can make the
     * ring look full once all others have gone round. Sleeping lets it run; spinning in a real-time
     * thread would not. */
    while (!ring_push(&enc->queue, buffer))
        futex_wait(&enc->submitted, atomic_load(&enc->submitted), 1);
}

void encoder_submit_many(struct encoder *enc, const uint32_t *buffers,
                         const struct captured *captured, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        push(enc, buffers[i], &captured[i]);
    /* The store that filled the place comes before the look for sleepers; they count themselves
     * before they look for it. */
    atomic_thread_fence(memory_order_seq_cst);
    int sleepers = atomic_load(&enc->sleepers);
    if (n > 0 && sleepers > 0) {
        atomic_fetch_add(&enc->submitted, 1);
        futex_wake(&enc->submitted, (unsigned)sleepers < n ? sleepers : (int)n);
    }
}

void encoder_submit(struct encoder *enc, uint32_t buffer, const struct captured *captured)
{
    encoder_submit_many(enc, &buffer, captured, 1);
}

int encoder_error(const struct encoder *enc)
{
    return atomic_load(&((struct encoder *)enc)->error);
}

static void join_all(struct encoder *enc)
{
    atomic_store(&enc->no_more, true);
    atomic_fetch_add(&enc->submitted, 1);
    futex_wake(&enc->submitted, INT_MAX);
    for (unsigned i = 0; i < enc->n_threads; i++)
        pthread_join(enc->threads[i], NULL);
    enc->n_threads = 0;
}

int encoder_finish(struct encoder *enc)
{
    join_all(enc);
    return encoder_error(enc);
}

void encoder_cancel(struct encoder *enc)
{
    atomic_store(&enc->cancelled, true);
    join_all(enc);
}

static int compare_poison(const void *a, const void *b)
{
    const struct image_poison *x = a, *y = b;
    return x->cluster < y->cluster ? -1 : x->cluster > y->cluster;
}

const struct image_poison *encoder_poison(struct encoder *enc, uint64_t *n)
{
    *n = enc->n_poison;
    if (enc->n_poison)
        qsort(enc->poison, enc->n_poison, sizeof(*enc->poison), compare_poison);
    return enc->poison;
}

const struct encoder_stages *encoder_stages(const struct encoder *enc)
{
    return &enc->stages;
}

void encoder_close(struct encoder *enc)
{
    if (!enc)
        return;
    ring_free(&enc->queue);
    pthread_mutex_destroy(&enc->poison_lock);
    free(enc->captured);
    free(enc->threads);
    free(enc->poison);
    free(enc);
}
