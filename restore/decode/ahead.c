#include "restore/decode/ahead.h"

#include <limits.h>

#include "common/futex.h"

#define MOST_CLUSTERS 128u /* 2 MiB */
#define RUNS_MAX 256u
#define LOOK_MS 200u        /* so late a worker sees a stop that came just before its sleep */
#define WANTED_CLUSTERS 16u /* the third time: not by chance */

int ahead_init(struct ahead *a)
{
    *a = (struct ahead){.streams = {.first = AHEAD_RUN, .most = MOST_CLUSTERS}};
    return ring_init(&a->runs, RUNS_MAX);
}

void ahead_free(struct ahead *a)
{
    ring_free(&a->runs);
}

void ahead_turn_on(struct ahead *a)
{
    atomic_store(&a->on, true);
}

void ahead_wake(struct ahead *a)
{
    atomic_fetch_add(&a->asked, 1);
    if (atomic_load(&a->waiting))
        futex_wake(&a->asked, INT_MAX);
}

/* Asks for the runs that [from, to) touches; returns where it ended. */
static uint64_t ask(struct ahead *a, uint64_t from, uint64_t to)
{
    uint64_t run = from / AHEAD_RUN;
    for (; run * AHEAD_RUN < to && run < UINT32_MAX; run++)
        if (!ring_push(&a->runs, (uint32_t)run))
            break;
    return run * AHEAD_RUN;
}

void ahead_note(struct ahead *a, const struct block *b, uint64_t cluster, uint64_t n)
{
    if (n != 1 || !atomic_load_explicit(&a->on, memory_order_relaxed) ||
        streams_covers(&a->streams, cluster))
        return;
    struct stream *s = streams_find(&a->streams, cluster);
    s->next = cluster + 1;
    if (s->ahead == a->streams.first) /* the first sign of it */
        return;
    uint64_t end = b->first_cluster + b->n_clusters;
    if (cluster + s->ahead < end)
        end = cluster + s->ahead;
    uint64_t asked = ask(a, cluster + 1, end);
    if (asked <= s->next)
        return;
    s->next = asked;
    /* Who reads in order waits for the workers: where all CPUs are busy they must not come last. */
    struct calm *calm = atomic_load(&a->calm);
    if (s->ahead >= WANTED_CLUSTERS && calm)
        calm_want(calm);
    ahead_wake(a);
}

bool ahead_take(struct ahead *a, uint64_t *cluster)
{
    uint32_t run;
    if (!ring_pop(&a->runs, &run))
        return false;
    *cluster = (uint64_t)run * AHEAD_RUN;
    return true;
}

void ahead_wait(struct ahead *a, unsigned ms)
{
    atomic_fetch_add(&a->waiting, 1);
    unsigned seen = atomic_load(&a->asked);
    if (atomic_load_explicit(&a->runs.head, memory_order_relaxed) ==
        atomic_load_explicit(&a->runs.tail, memory_order_relaxed))
        futex_wait(&a->asked, seen, ms < LOOK_MS ? ms : LOOK_MS);
    atomic_fetch_sub(&a->waiting, 1);
}
