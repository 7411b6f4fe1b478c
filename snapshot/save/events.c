#include "snapshot/save/events.h"

#include <poll.h>

#include "common/testhook.h"

/* Memory of [from, to) goes away. After the instant, what is not saved yet is lost; before it, no
 * copy of it can be trusted any more. False: the snapshot has failed. */
static bool lose_clusters(struct events *v, const struct cluster_range *r, uint64_t from,
                          uint64_t to, enum capture_failure why)
{
    struct capture *c = v->capture;
    for (uint64_t cluster = from; cluster < to; cluster++) {
        if (v->phase == PHASE_BEFORE) {
            cluster_leave(&c->map, cluster);
        } else if (!cluster_is_saved(&c->map, cluster)) {
            capture_fail(c, why, 0, cluster_hva(r, cluster));
            return false;
        }
    }
    return true;
}

/* What the guest's [start, end) has in common with the memory that is saved goes away. */
static void lose_memory(struct events *v, uint64_t start, uint64_t end, enum capture_failure why)
{
    const struct cluster_map *map = &v->capture->map;
    for (uint32_t i = 0; i < map->n_ranges; i++) {
        const struct cluster_range *r = &map->ranges[i];
        uint64_t base = r->region->hva, limit = base + r->region->bytes;
        if (start >= limit || end <= base)
            continue;
        uint64_t from = start > base ? (start - base) / IMAGE_CLUSTER_BYTES : 0;
        uint64_t to =
            ((end < limit ? end : limit) - base + IMAGE_CLUSTER_BYTES - 1) / IMAGE_CLUSTER_BYTES;
        if (!lose_clusters(v, r, r->first + from, r->first + to, why))
            return;
    }
}

static void serve_layout_event(struct events *v, const struct uffd_msg *m)
{
    if (TESTHOOK_BROKEN("discard-ignored"))
        return;
    if (m->event == UFFD_EVENT_REMOVE)
        lose_memory(v, m->arg.remove.start, m->arg.remove.end, CAPTURE_DISCARDED);
    else if (m->event == UFFD_EVENT_UNMAP)
        lose_memory(v, m->arg.remove.start, m->arg.remove.end, CAPTURE_UNMAPPED);
    else if (m->event == UFFD_EVENT_REMAP)
        lose_memory(v, m->arg.remap.from, m->arg.remap.from + m->arg.remap.len, CAPTURE_UNMAPPED);
}

int events_read(struct events *v, struct uffd_msg *messages)
{
    atomic_uint *turn = &v->shard->events_turn;
    atomic_fetch_add(turn, 1);
    int n = uffd_read_messages(v->shard->uffd, messages, EVENTS_BATCH);
    for (int i = 0; i < n; i++) {
        if (messages[i].event == UFFD_EVENT_PAGEFAULT)
            continue;
        TESTHOOK_POINT("faults-discard");
        serve_layout_event(v, &messages[i]);
    }
    atomic_fetch_add(turn, 1);
    return n;
}

/* The kernel refuses until the event is read and its sender has run, so that is given the CPU: by
 * sleeping, for a real-time thread that only reads the faults which keep coming would never let
 * it. */
int events_drain(struct events *v)
{
    struct uffd_msg messages[EVENTS_BATCH];
    int n = events_read(v, messages), n_faults = 0;
    for (int i = 0; i < n; i++)
        if (messages[i].event == UFFD_EVENT_PAGEFAULT) {
            uffd_wake(v->shard->uffd, messages[i].arg.pagefault.address & ~4095ull, 4096);
            n_faults++;
        }
    if (n >= 0 && n_faults == n) /* no event of the layout */
        poll(NULL, 0, 1);
    return n < 0 ? n : 0;
}
