#include "restore/serve/fetched.h"

#include "common/clock.h"

#define REREAD_NS 1000000000ull       /* between two passes over what could not be read */
#define REREAD_FAILED_NS 200000000ull /* after one that can't be read still */

int fetched_start(struct fetched *f, const struct intake_config *config, struct queue *queue)
{
    int rc = intake_open(&f->intake, config);
    if (rc)
        return rc;
    const struct demand_config demand = {
        .intake = f->intake, .queue = queue, .unit_bytes = blocks_max_unit(config->blocks)};
    return demand_start(&f->demand, &demand);
}

void fetched_let_go(struct fetched *f)
{
    if (f->intake)
        intake_stop(f->intake);
}

void fetched_stop(struct fetched *f)
{
    demand_stop(f->demand);
    intake_close(f->intake);
}

bool fetched_is_failing(const struct fetched *f)
{
    return demand_is_failing(f->demand) || intake_is_stalled(f->intake);
}

bool fetched_look(struct fetched *f)
{
    f->has = f->has || demand_next(f->demand, &f->slot);
    return f->has;
}

/* One could not be read: it is tried again if somebody waits for it, or if it is to be poisoned
 * some time. */
static void put_off(struct fetched *f, uint64_t hva, uint64_t len)
{
    uint64_t now = clock_monotonic_ns();
    bool parked = waiting_is_parked(f->waiting, hva, len);
    if (!parked)
        f->next_ns = now + REREAD_FAILED_NS;
    if (!parked && !f->answerer->poisons)
        demand_release(f->demand, f->slot);
    else if (!demand_fail(f->demand, f->slot, now))
        waiting_forget(f->waiting, hva, len);
    waiting_unpark(f->waiting, 0, 0); /* its place is free */
}

/* The job is through, or is put off. */
static void settle(struct fetched *f, enum answer answer)
{
    const struct job *job = demand_job(f->demand, f->slot);
    const struct block *b = job->block;
    uint64_t hva = b->region.hva + block_cluster_offset(b, job->cluster);
    uint64_t len = (uint64_t)job->n_clusters * IMAGE_CLUSTER_BYTES;
    if (answer == LATER) {
        put_off(f, hva, len);
        return;
    }
    demand_release(f->demand, f->slot);
    waiting_unpark(f->waiting, hva, len);
}

bool fetched_install(struct fetched *f, bool *no_room)
{
    if (demand_under_way(f->demand) > 0 || demand_is_failing(f->demand))
        demand_tick(f->demand, clock_monotonic_ns());
    unsigned behind = 0;
    while (fetched_look(f)) {
        const struct job *job = demand_job(f->demand, f->slot);
        enum answer answer = answer_job(f->answerer, job, demand_content(f->demand, f->slot));
        f->has = answer == AGAIN_EVENT || answer == AGAIN_ROOM;
        *no_room |= answer == AGAIN_ROOM;
        /* There may be room for others, whose memory is another file's. */
        if (answer == AGAIN_ROOM && behind < demand_under_way(f->demand) &&
            demand_put_back(f->demand, f->slot)) {
            behind++;
            f->has = false;
            continue;
        }
        if (f->has)
            return false;
        settle(f, answer);
    }
    return behind == 0;
}

bool fetched_help(struct fetched *f)
{
    return demand_help(f->demand, f->answerer->codec);
}

bool fetched_read_again(struct fetched *f)
{
    uint64_t now = clock_monotonic_ns();
    if (f->answerer->n_unread == 0 || demand_under_way(f->demand) > 0 || now < f->next_ns ||
        intake_is_stalled(f->intake))
        return false;
    if (answerer_post_unread(f->answerer, &f->cluster)) {
        f->any = true;
        return true;
    }
    if (!f->any)
        f->answerer->n_unread = 0;
    f->any = false;
    f->cluster = 0;
    f->next_ns = now + REREAD_NS;
    return true;
}

bool fetched_is_timed(struct fetched *f)
{
    return demand_tick(f->demand, clock_monotonic_ns()) || f->answerer->n_unread > 0 ||
           f->waiting->forgot;
}
