#include "snapshot/save/capture.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

/* The hot list holds at most this many clusters (1 GiB), or a quarter of the VM if that is more. */
#define HOT_ROOM_MIN 65536u

static void free_parts(struct capture *c)
{
    if (c->failed_event >= 0)
        close(c->failed_event);
    c->failed_event = -1;
    free(c->hot);
    c->hot = NULL;
    cluster_map_free(&c->map);
}

int capture_init(struct capture *c, const struct target *target, const struct region *regions,
                 uint32_t n_regions, unsigned n_shards)
{
    memset(c, 0, sizeof(*c));
    c->target = target;
    c->regions = regions;
    c->n_regions = n_regions;
    c->n_shards = n_shards;
    c->failed_event = -1;
    int ret = cluster_map_init(&c->map, regions, n_regions, c->shards, n_shards);
    if (ret)
        return ret;
    c->hot_room = c->map.n_clusters / 4;
    if (c->hot_room < HOT_ROOM_MIN)
        c->hot_room = HOT_ROOM_MIN;
    if (c->hot_room > c->map.n_clusters)
        c->hot_room = c->map.n_clusters;
    c->hot = calloc(c->hot_room, sizeof(*c->hot));
    c->failed_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!c->hot || c->failed_event < 0) {
        ret = c->hot ? -errno : -ENOMEM;
        free_parts(c);
        return ret;
    }
    return 0;
}

uint64_t capture_n_hot(const struct capture *c)
{
    uint64_t n = atomic_load(&((struct capture *)c)->n_hot);
    return n < c->hot_room ? n : c->hot_room;
}

void capture_fail(struct capture *c, enum capture_failure why, int err, uint64_t hva)
{
    int ok = CAPTURE_OK;
    if (err == -ESRCH)
        why = CAPTURE_TARGET_GONE;
    else if (why == CAPTURE_PROTECT && err == -ENOENT)
        why = CAPTURE_UNMAPPED; /* nothing of ours is mapped there any more */
    if (!atomic_compare_exchange_strong(&c->failure, &ok, (int)why))
        return;
    atomic_store(&c->failure_errno, err);
    atomic_store(&c->failure_hva, hva);
    if (c->pool)
        pool_cancel(c->pool);
    eventfd_write(c->failed_event, 1);
}

static const struct region *find_region(const struct capture *c, uint64_t hva)
{
    for (uint32_t i = 0; i < c->n_regions; i++)
        if (hva >= c->regions[i].hva && hva - c->regions[i].hva < c->regions[i].bytes)
            return &c->regions[i];
    return NULL;
}

int capture_error(const struct capture *c, struct error *e)
{
    struct capture *own = (struct capture *)c;
    int err = -atomic_load(&own->failure_errno);
    uint64_t hva = atomic_load(&own->failure_hva);
    const struct region *region = find_region(c, hva);
    const char *block = region ? region->name : "guest memory";
    uint64_t offset = region ? hva - region->hva : hva;
    switch ((enum capture_failure)atomic_load(&own->failure)) {
    case CAPTURE_OK:
        return 0;
    case CAPTURE_CANCELLED:
        return error_set(e, VMSNAP_EXIT_FAILED, ECANCELED, "snapshot given up");
    case CAPTURE_TARGET_GONE:
        if (e)
            e->guest = GUEST_ENDED;
        return error_set(e, VMSNAP_EXIT_TARGET, ESRCH, "the VM's process %d ended in mid-snapshot",
                         (int)c->target->pid);
    case CAPTURE_DISCARDED:
        error_set(e, VMSNAP_EXIT_FAILED, EIO,
                  "%s at offset 0x%llx was discarded by the VM before it was saved", block,
                  (unsigned long long)offset);
        error_hint(e,
                   "a balloon was inflated or free pages were reported; try again when it rests");
        return -EIO;
    case CAPTURE_UNMAPPED:
        error_set(e, VMSNAP_EXIT_FAILED, EIO,
                  "%s at offset 0x%llx was unmapped by the VM before it was saved", block,
                  (unsigned long long)offset);
        error_hint(e, "was memory unplugged? try again");
        return -EIO;
    case CAPTURE_READ:
        return error_set(e, VMSNAP_EXIT_FAILED, err, "cannot read %s at offset 0x%llx", block,
                         (unsigned long long)offset);
    case CAPTURE_STALLED:
        error_set(e, VMSNAP_EXIT_FAILED, 0,
                  "a write of the guest was held for more than %d ms: protection dropped",
                  c->max_stall_ms);
        error_hint(e, "the sink takes no data fast enough; a larger --buffer or --max-stall helps "
                      "if it is only slow");
        return -EIO;
    case CAPTURE_OUTPUT:
        return error_set(e, VMSNAP_EXIT_FAILED, err, "cannot write the image");
    case CAPTURE_PROTECT:
        break;
    }
    return error_set(e, VMSNAP_EXIT_FAILED, err,
                     "cannot change the protection of %s at offset 0x%llx", block,
                     (unsigned long long)offset);
}

int capture_copy(struct capture *c, const struct cluster_range *range, uint64_t cluster,
                 uint32_t buffer, struct captured *captured, uint64_t *absent)
{
    uint32_t bytes = cluster_bytes(range, cluster);
    uint64_t poisoned = 0;
    *captured = (struct captured){.cluster = cluster, .bytes = bytes};
    int ret =
        region_read(range->region, c->target, cluster_offset(range, cluster),
                    bytes / IMAGE_PAGE_BYTES, pool_memory(c->pool, buffer), absent, &poisoned);
    captured->poisoned = (uint32_t)poisoned;
    return ret;
}
