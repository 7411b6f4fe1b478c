#include "snapshot/save/copier.h"

#include <unistd.h>

#include "common/clock.h"
#include "common/testhook.h"
#include "common/uffd.h"

void copier_hand_on(struct copier *k)
{
    for (unsigned i = 0; i < k->n_pending; i++)
        encoder_submit(k->capture->encoder, k->pending[i].buffer, &k->pending[i].captured);
    k->n_pending = 0;
}

/* When there is no buffer the guest's writer waits, and it is counted. */
static uint32_t wait_for_buffer(struct copier *k)
{
    struct capture *c = k->capture;
    uint32_t buffer = pool_try_take(c->pool, POOL_FAULT);
    if (buffer != POOL_NONE)
        return buffer;
    copier_hand_on(k); /* or they would be waited for */
    uint64_t from = clock_monotonic_ns();
    buffer = pool_take(c->pool, POOL_FAULT);
    atomic_fetch_add(&c->throttled_ns, clock_monotonic_ns() - from);
    return buffer;
}

static void break_release_before_save(const struct cluster_range *range, uint64_t cluster)
{
    /* The mistake: what the guest writes in between is saved as if it were of the instant. */
    if (TESTHOOK_BROKEN("release-before-save")) {
        uffd_unprotect(range->shard->uffd, cluster_hva(range, cluster),
                       cluster_bytes(range, cluster));
        usleep(300);
    }
}

/* Saves one cluster unless somebody has. `buffer` is used or given back. False: failed. */
static bool save_into(struct copier *k, const struct cluster_range *range, uint64_t cluster,
                      uint32_t buffer)
{
    struct capture *c = k->capture;
    if (!cluster_claim(&c->map, cluster)) {
        pool_put(c->pool, buffer);
        return true;
    }
    break_release_before_save(range, cluster);
    struct captured captured;
    uint64_t absent;
    int ret = capture_copy(c, range, cluster, buffer, &captured, &absent);
    if (ret) {
        pool_put(c->pool, buffer);
        capture_fail(c, CAPTURE_READ, ret, cluster_hva(range, cluster));
        return false;
    }
    cluster_claim_done(&c->map, cluster);
    atomic_fetch_add(&c->clusters_from_faults, 1);
    if (k->n_pending == COPIER_PENDING)
        copier_hand_on(k);
    k->pending[k->n_pending].buffer = buffer;
    k->pending[k->n_pending++].captured = captured;
    return true;
}

bool copier_save(struct copier *k, const struct cluster_range *range, uint64_t from, uint64_t to,
                 enum copier_patience patience, bool *copied)
{
    struct capture *c = k->capture;
    if (copied)
        *copied = false;
    for (uint64_t cluster = from; cluster < to; cluster++) {
        if (cluster_is_saved(&c->map, cluster))
            continue;
        uint32_t buffer =
            patience == COPIER_WAIT ? wait_for_buffer(k) : pool_try_take(c->pool, POOL_AROUND);
        if (buffer == POOL_NONE || !save_into(k, range, cluster, buffer))
            return false;
        if (copied)
            *copied = true;
    }
    return true;
}
