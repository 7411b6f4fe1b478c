#include "restore/decode/failing.h"

#include <errno.h>

/* 100 ms after the first try, each time twice as long. A read that hangs is only looked at
 * (intake.h): that costs nothing, and the guest is to go on soon once the storage does. */
#define FIRST_NS 100000000ull
#define MOST_NS 2000000000ull
#define MOST_HANGING_NS 400000000ull

static uint64_t delay_ns(const struct job *job)
{
    uint64_t ns = job->tries < 6 ? (FIRST_NS / 2) << job->tries : MOST_NS;
    uint64_t most = job->status == -EINPROGRESS ? MOST_HANGING_NS : MOST_NS;
    return ns < most ? ns : most;
}

static void set_next(struct failing *f)
{
    f->next_ns = UINT64_MAX;
    for (unsigned i = 0; i < f->n; i++)
        if (f->units[i].at_ns < f->next_ns)
            f->next_ns = f->units[i].at_ns;
}

bool failing_has(const struct failing *f, uint64_t cluster)
{
    for (unsigned i = 0; i < f->n; i++)
        if (f->units[i].cluster == cluster)
            return true;
    return false;
}

bool failing_add(struct failing *f, const struct job *job, uint64_t now_ns)
{
    if (f->n == FAILING_MAX)
        return false;
    f->units[f->n++] = (struct failing_unit){.block = job->block,
                                             .cluster = job->cluster,
                                             .n_clusters = job->n_clusters,
                                             .tries = job->tries,
                                             .n_errors = job->n_errors,
                                             .at_ns = now_ns + delay_ns(job)};
    set_next(f);
    return true;
}

bool failing_take_due(struct failing *f, uint64_t now_ns, struct job *job)
{
    if (f->n == 0 || f->next_ns > now_ns)
        return false;
    unsigned i = 0;
    while (f->units[i].at_ns != f->next_ns)
        i++;
    const struct failing_unit *u = &f->units[i];
    *job = (struct job){.block = u->block,
                        .cluster = u->cluster,
                        .n_clusters = u->n_clusters,
                        .origin = JOB_DEMAND,
                        .tries = u->tries,
                        .n_errors = u->n_errors};
    f->units[i] = f->units[--f->n];
    set_next(f);
    return true;
}
