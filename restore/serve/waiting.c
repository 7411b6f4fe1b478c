#include "restore/serve/waiting.h"

#include <assert.h>

#include "common/clock.h"
#include "common/uffd.h"

#define WAKE_NS 50000000u
#define LONG_NS 250000000u /* before that it is not said either */

void waiting_wake_all(int uffd, const struct blocks *blocks)
{
    for (uint32_t i = 0; i < blocks->count; i++) {
        const struct block *b = &blocks->items[i];
        uffd_wake(uffd, b->region.hva, b->bytes);
    }
}

void waiting_wake_forgotten(struct waiting *w, int uffd, const struct blocks *blocks)
{
    if (!w->forgot)
        return;
    uint64_t now = clock_monotonic_ns();
    if (now - w->woken_ns < WAKE_NS)
        return;
    w->forgot = false;
    w->woken_ns = now;
    waiting_wake_all(uffd, blocks);
}

/* Half of the parked ones stay, so that the demand threads never lack work. */
unsigned waiting_make_room(struct waiting *w)
{
    while (waiting_room(w) == 0) {
        if (w->n_parked > 0)
            w->n_parked /= 2;
        else
            w->n /= 2;
        w->forgot = true;
    }
    return waiting_room(w);
}

void waiting_add(struct waiting *w, const struct waiting_fault *fault)
{
    assert(waiting_room(w) > 0);
    for (unsigned i = 0; i < w->n_parked; i++)
        if (w->parked[i].hva == fault->hva) {
            w->parked[i] = w->parked[--w->n_parked];
            break;
        }
    w->faults[w->n++] = *fault;
}

bool waiting_answer(struct waiting *w, struct answerer *a)
{
    bool no_room = false;
    unsigned kept = 0, behind = 0;
    a->own_units = w->n >= w->crowd ? 1 : UINT32_MAX;
    for (unsigned i = 0; i < w->n; i++) {
        struct waiting_fault fault = w->faults[i];
        enum answer answer = answer_fault(a, fault.hva, fault.write);
        if (answer == ANSWERED) {
            uint64_t now = clock_monotonic_ns();
            w->last_ns = now;
            w->n_answered++;
            histogram_add(&w->times, now - fault.since_ns);
        } else if (answer == ELSEWHERE || answer == AGAIN_PLACE) {
            fault.lacks_place = answer == AGAIN_PLACE;
            w->parked[w->n_parked++] = fault;
        } else if (answer != NEVER) {
            no_room |= answer == AGAIN_ROOM;
            behind += answer == AGAIN_JOB;
            w->faults[kept++] = fault;
        }
    }
    w->n = kept;
    w->n_behind = behind;
    return no_room;
}

void waiting_unpark(struct waiting *w, uint64_t hva, uint64_t len)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < w->n_parked; i++) {
        struct waiting_fault fault = w->parked[i];
        if (fault.lacks_place || fault.hva - hva < len)
            w->faults[w->n++] = fault;
        else
            w->parked[kept++] = fault;
    }
    w->n_parked = kept;
}

void waiting_forget(struct waiting *w, uint64_t hva, uint64_t len)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < w->n_parked; i++)
        if (w->parked[i].hva - hva >= len)
            w->parked[kept++] = w->parked[i];
    w->forgot |= kept < w->n_parked;
    w->n_parked = kept;
}

bool waiting_is_parked(const struct waiting *w, uint64_t hva, uint64_t len)
{
    for (unsigned i = 0; i < w->n_parked; i++)
        if (w->parked[i].hva - hva < len)
            return true;
    return false;
}

static bool is_long(const struct waiting_fault *faults, unsigned n, uint64_t now_ns)
{
    for (unsigned i = 0; i < n; i++)
        if (now_ns > faults[i].since_ns + LONG_NS)
            return true;
    return false;
}

bool waiting_is_long(const struct waiting *w, uint64_t now_ns)
{
    return is_long(w->faults, w->n, now_ns) || is_long(w->parked, w->n_parked, now_ns);
}
