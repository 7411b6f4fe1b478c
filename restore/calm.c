#include "restore/calm.h"

#include <unistd.h>

#include "common/thread.h"

#define CALM_NICE_VALUE 10 /* below the guest's own threads: a busy guest keeps its CPUs */
#define HURRY_NICE_VALUE (-10)

void calm_join(struct calm *c, unsigned number)
{
    atomic_store(&c->tids[number], gettid());
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
    atomic_store(&c->mode, (int)mode);
    apply(c, gettid());
    if (atomic_load(&c->hurried))
        thread_go_nice(gettid(), HURRY_NICE_VALUE);
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
