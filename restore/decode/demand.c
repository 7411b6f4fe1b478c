#include "restore/decode/demand.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/codec.h"
#include "common/futex.h"
#include "common/thread.h"
#include "restore/decode/failing.h"

#define SLOTS_BYTES (1u << 20)
#define SLOTS_MAX 32u
#define SLOTS_MIN 2u
#define LOOK_MS 1000
#define PUSH_AGAIN_US 20

enum slot_state { SLOT_FREE, SLOT_POSTED, SLOT_TO_POST };

struct slot {
    enum slot_state state; /* the server's */
    bool again;            /* it has failed before */
    struct job job;
};

struct demand {
    struct demand_config config;
    struct slot slots[SLOTS_MAX];
    unsigned n_slots, n_used, n_again;
    struct failing failing_units;
    unsigned char *memory; /* unit_bytes per slot */
    struct ring quick;     /* those that the server may take back */
    struct ring posted, again, ready;
    atomic_uint posts;    /* futex word */
    atomic_uint idle;     /* threads that sleep on it */
    atomic_bool at_again; /* a thread is at what has failed before */
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
    job->n_errors += intake_is_error(job->status);
    job_set_cause(job, &e);
}

/* Takes what is to be read next; what has failed before comes last, and by one thread at a time. */
static bool take_posted(struct demand *d, uint32_t *slot, bool *again)
{
    *again = false;
    if (ring_pop(&d->quick, slot) || ring_pop(&d->posted, slot))
        return true;
    if (atomic_exchange(&d->at_again, true))
        return false;
    *again = ring_pop(&d->again, slot);
    atomic_store(&d->at_again, *again);
    return *again;
}

static void *run_thread(void *opaque)
{
    struct demand *d = opaque;
    struct codec *codec = codec_new(1);
    while (codec && !atomic_load(&d->stop)) {
        unsigned seen = atomic_load(&d->posts);
        uint32_t slot;
        bool again;
        if (!take_posted(d, &slot, &again)) {
            atomic_fetch_add(&d->idle, 1);
            futex_wait(&d->posts, seen, LOOK_MS);
            atomic_fetch_sub(&d->idle, 1);
            continue;
        }
        decode_slot(d, codec, slot);
        if (again)
            atomic_store(&d->at_again, false);
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
        s->state = SLOT_TO_POST;
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
    if (failing_has(&d->failing_units, first))
        return DEMAND_UNDER_WAY;
    if (found == d->n_slots)
        return DEMAND_FULL;
    struct slot *s = &d->slots[found];
    s->job = (struct job){.block = b, .cluster = first, .n_clusters = n, .origin = JOB_DEMAND};
    s->again = false;
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

static void note_failing(struct demand *d)
{
    bool failing = d->failing_units.n > 0 || d->n_again > 0;
    atomic_store_explicit(&d->failing, failing, memory_order_relaxed);
}

void demand_release(struct demand *d, uint32_t slot)
{
    struct slot *s = &d->slots[slot];
    d->n_again -= s->again;
    s->again = false;
    s->state = SLOT_FREE;
    d->n_used--;
    note_failing(d);
}

bool demand_fail(struct demand *d, uint32_t slot, uint64_t now_ns)
{
    bool kept = failing_add(&d->failing_units, &d->slots[slot].job, now_ns);
    demand_release(d, slot);
    return kept;
}

/* A slot for another try, of those that may be used for that; n_slots: none. */
static uint32_t slot_for_again(const struct demand *d)
{
    uint32_t i = d->n_again < d->n_slots / 2 ? 0 : d->n_slots;
    while (i < d->n_slots && d->slots[i].state != SLOT_FREE)
        i++;
    return i;
}

static void post_due(struct demand *d, uint64_t now_ns)
{
    for (uint32_t i; (i = slot_for_again(d)) < d->n_slots;) {
        struct slot *s = &d->slots[i];
        if (!failing_take_due(&d->failing_units, now_ns, &s->job))
            return;
        s->again = true;
        d->n_used++;
        d->n_again++;
        hand_out(d, &d->again, i);
    }
}

bool demand_tick(struct demand *d, uint64_t now_ns)
{
    bool waiting = false;
    for (uint32_t i = 0; d->n_used > 0 && i < d->n_slots; i++) {
        if (d->slots[i].state != SLOT_TO_POST)
            continue;
        hand_out(d, d->slots[i].again ? &d->again : &d->posted, i);
        waiting |= d->slots[i].state == SLOT_TO_POST;
    }
    if (d->failing_units.n > 0)
        post_due(d, now_ns);
    return waiting || d->failing_units.n > 0;
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
        rc = ring_init(&d->again, d->n_slots);
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
    ring_free(&d->again);
    ring_free(&d->posted);
    ring_free(&d->ready);
    free(d->memory);
    free(d);
}
