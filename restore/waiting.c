#include "restore/waiting.h"

#include <assert.h>

#include "common/clock.h"

void waiting_add(struct waiting *w, const struct waiting_fault *fault)
{
    assert(waiting_room(w) > 0);
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
        } else if (answer == ELSEWHERE) {
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

void waiting_unpark(struct waiting *w)
{
    for (unsigned i = 0; i < w->n_parked; i++)
        w->faults[w->n++] = w->parked[i];
    w->n_parked = 0;
}

bool waiting_is_parked(const struct waiting *w, uint64_t hva, uint64_t len)
{
    for (unsigned i = 0; i < w->n_parked; i++)
        if (w->parked[i].hva - hva < len)
            return true;
    return false;
}
