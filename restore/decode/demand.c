#include "restore/decode/demand.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/codec.h"
#include "common/futex.h"
#include "common/thread.h"

#define SLOTS_BYTES (1u << 20)
#define SLOTS_MAX 32u
#define SLOTS_MIN 2u
#define RETRY_MIN_NS 200000000ull
#define RETRY_MAX_NS 2000000000ull
#define LOOK_MS 1000
#define PUSH_AGAIN_US 20

enum slot_state { SLOT_FREE, SLOT_POSTED, SLOT_TO_RETRY };

struct slot {
    enum slot_state state; /* the server's */
    struct job job;
    uint64_t retry_ns;
};

struct demand {
    struct demand_config config;
    struct slot slots[SLOTS_MAX];
    unsigned n_slots, n_used;
    unsigned char *memory; /* unit_bytes per slot */
    struct ring quick;     /* those that the server may take back */
    struct ring posted, ready;
    atomic_uint posts; /* futex word */
    atomic_uint idle;  /* threads that sleep on it */
    atomic_bool stop, failing;
    pthread_t threads[DEMAND_THREADS];
    unsigned n_threads;
};

const struct job *demand_job(const struct demand *d, uint32_t slot)
{
    return &d->slots[slot].job;
}

static unsigned char *content(const struct demand *d, uint32_t slot)
{
    return d->memory + slot * d->config.unit_bytes;
}

const unsigned char *demand_content(const struct demand *d, uint32_t slot)
{
    return content(d, slot);
}

bool demand_is_failing(const struct demand *d)
{
    return atomic_load(&d->failing);
}

unsigned demand_under_way(const struct demand *d)
{
    return d->n_used;
}

/* ---- the threads ---- */

static void decode_slot(struct demand *d, struct codec *codec, uint32_t number)
{
    struct job *job = &d->slots[number].job;
    struct error e = {0};
    job->status = 0;
    for (uint32_t i = 0; i < job->n_clusters && job->status == 0; i++) {
        job->damaged = job->cluster + i;
        job->status = intake_read(d->config.intake, INTAKE_FOR_FAULT, job->damaged, codec,
                                  content(d, number) + (size_t)i * IMAGE_CLUSTER_BYTES, &e);
    }
    job_set_cause(job, &e);
}

static void *run_thread(void *opaque)
{
    struct demand *d = opaque;
    struct codec *codec = codec_new(1);
    while (codec && !atomic_load(&d->stop)) {
        unsigned seen = atomic_load(&d->posts);
        uint32_t slot;
        if (!ring_pop(&d->quick, &slot) && !ring_pop(&d->posted, &slot)) {
            atomic_fetch_add(&d->idle, 1);
            futex_wait(&d->posts, seen, LOOK_MS);
            atomic_fetch_sub(&d->idle, 1);
            continue;
        }
        decode_slot(d, codec, slot);
        while (!ring_push(&d->ready, slot)) /* the server is in the middle of a pop */
            usleep(PUSH_AGAIN_US);
        queue_notify(d->config.queue);
    }
    codec_free(codec);
    return NULL;
}

/* ---- the server's side ---- */

/* The rings have a place for every slot; where a thread that takes one has lost its CPU in the
 * middle of that, it is tried again later. A thread that counts itself as idle too late for us to
 * see it finds `posts` changed. */
static void hand_out(struct demand *d, struct ring *ring, uint32_t number)
{
    struct slot *s = &d->slots[number];
    s->job.tries++;
    s->state = SLOT_POSTED;
    if (!ring_push(ring, number)) {
        s->job.tries--;
        s->state = SLOT_TO_RETRY;
        s->retry_ns = 0;
        return;
    }
    atomic_fetch_add(&d->posts, 1);
    if (atomic_load(&d->idle) > 0)
        futex_wake(&d->posts, 1);
}

bool demand_help(struct demand *d, struct codec *codec)
{
    uint32_t number;
    int rc = 0;
    if (d->n_used == 0 || !ring_pop(&d->quick, &number))
        return false;
    struct job *job = &d->slots[number].job;
    for (uint32_t i = 0; i < job->n_clusters && rc == 0; i++)
        rc = intake_read_now(d->config.intake, job->cluster + i, codec,
                             content(d, number) + (size_t)i * IMAGE_CLUSTER_BYTES);
    job->status = 0;
    if (rc == 0 && ring_push(&d->ready, number))
        return true;
    job->tries--; /* a thread has yet to begin with it */
    hand_out(d, &d->posted, number);
    return true;
}

enum demand_answer demand_post(struct demand *d, const struct block *b, uint64_t first, uint32_t n,
                               bool is_quick)
{
    uint32_t found = d->n_slots;
    for (uint32_t i = 0; i < d->n_slots; i++) {
        if (d->slots[i].state == SLOT_FREE)
            found = i;
        else if (d->slots[i].job.cluster == first)
            return DEMAND_UNDER_WAY;
    }
    if (found == d->n_slots)
        return DEMAND_FULL;
    struct slot *s = &d->slots[found];
    s->job = (struct job){.block = b, .cluster = first, .n_clusters = n, .origin = JOB_DEMAND};
    d->n_used++;
    hand_out(d, is_quick ? &d->quick : &d->posted, found);
    return DEMAND_POSTED;
}

bool demand_next(struct demand *d, uint32_t *slot)
{
    return d->n_used > 0 && ring_pop(&d->ready, slot);
}

bool demand_put_back(struct demand *d, uint32_t slot)
{
    return ring_push(&d->ready, slot);
}

void demand_release(struct demand *d, uint32_t slot)
{
    d->slots[slot].state = SLOT_FREE;
    d->n_used--;
}

void demand_retry(struct demand *d, uint32_t slot, uint64_t now_ns)
{
    struct slot *s = &d->slots[slot];
    uint64_t delay = s->job.tries < 5 ? RETRY_MIN_NS << s->job.tries : RETRY_MAX_NS;
    s->state = SLOT_TO_RETRY;
    atomic_store_explicit(&d->failing, true, memory_order_relaxed);
    s->retry_ns = now_ns + (delay < RETRY_MAX_NS ? delay : RETRY_MAX_NS);
}

bool demand_tick(struct demand *d, uint64_t now_ns)
{
    bool waiting = false, failing = false;
    for (uint32_t i = 0; d->n_used > 0 && i < d->n_slots; i++) {
        const struct slot *s = &d->slots[i];
        failing |= s->state != SLOT_FREE && s->job.tries > (s->state == SLOT_POSTED);
        if (d->slots[i].state != SLOT_TO_RETRY)
            continue;
        if (d->slots[i].retry_ns <= now_ns)
            hand_out(d, &d->posted, i);
        waiting |= d->slots[i].state == SLOT_TO_RETRY;
    }
    atomic_store_explicit(&d->failing, failing, memory_order_relaxed);
    return waiting;
}

/* ---- the whole ---- */

int demand_start(struct demand **out, const struct demand_config *config)
{
    struct demand *d = calloc(1, sizeof(*d));
    if (!d)
        return -ENOMEM;
    d->config = *config;
    uint64_t n = SLOTS_BYTES / config->unit_bytes;
    d->n_slots = n < SLOTS_MIN ? SLOTS_MIN : n > SLOTS_MAX ? SLOTS_MAX : (unsigned)n;
    d->memory = malloc(d->n_slots * config->unit_bytes);
    int rc = d->memory ? ring_init(&d->posted, d->n_slots) : -ENOMEM;
    if (rc == 0)
        rc = ring_init(&d->quick, d->n_slots);
    if (rc == 0)
        rc = ring_init(&d->ready, d->n_slots);
    for (unsigned i = 0; i < DEMAND_THREADS && rc == 0; i++) {
        rc = thread_start(&d->threads[i], run_thread, d);
        d->n_threads += rc == 0;
    }
    if (rc)
        demand_stop(d);
    else
        *out = d;
    return rc;
}

void demand_stop(struct demand *d)
{
    if (!d)
        return;
    atomic_store(&d->stop, true);
    atomic_fetch_add(&d->posts, 1);
    futex_wake(&d->posts, (int)DEMAND_THREADS);
    for (unsigned i = 0; i < d->n_threads; i++)
        pthread_join(d->threads[i], NULL);
    ring_free(&d->quick);
    ring_free(&d->posted);
    ring_free(&d->ready);
    free(d->memory);
    free(d);
}
