#include "restore/decode/calm.h"

#include <unistd.h>

#include "common/thread.h"

#define CALM_NICE_VALUE 10 /* below the guest's own threads: a busy guest keeps its CPUs */
#define HURRY_NICE_VALUE (-10)

void calm_join(struct calm *c, unsigned number)
{
    atomic_store(&c->tids[number], gettid());
}

void calm_leave(struct calm *c, unsigned number)
{
    atomic_store(&c->tids[number], 0);
}

static void apply(struct calm *c, pid_t tid)
{
    enum calm_mode mode = (enum calm_mode)atomic_load(&c->mode);
    if (mode != CALM_LAST || thread_go_last(tid))
        thread_go_nice(tid, mode == CALM_AS_ANY ? 0 : CALM_NICE_VALUE);
}

/* Somebody may hurry us at the same time: whoever comes second sees the other. */
void calm_down(struct calm *c, enum calm_mode mode)
{
    int before = CALM_AS_ANY;
    if (mode == CALM_LAST) /* unless they are wanted already */
        atomic_compare_exchange_strong(&c->mode, &before, CALM_LAST);
    else
        atomic_store(&c->mode, (int)mode);
    apply(c, gettid());
    if (atomic_load(&c->hurried))
        thread_go_nice(gettid(), HURRY_NICE_VALUE);
}

void calm_want(struct calm *c)
{
    int before = CALM_LAST;
    if (atomic_compare_exchange_strong(&c->mode, &before, CALM_NICE))
        calm_hurry(c, atomic_load(&c->hurried));
}

void calm_hurry(struct calm *c, bool hurry)
{
    atomic_store(&c->hurried, hurry);
    for (unsigned i = 0; i < CALM_MAX_THREADS; i++) {
        int tid = atomic_load(&c->tids[i]);
        if (tid && hurry)
            thread_go_nice(tid, HURRY_NICE_VALUE);
        else if (tid)
            apply(c, tid);
    }
}
