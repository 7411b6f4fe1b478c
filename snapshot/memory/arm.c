#include "snapshot/memory/arm.h"

#include <errno.h>
#include <sched.h>

#include "common/clock.h"
#include "common/kernel.h"
#include "common/testhook.h"
#include "common/uffd.h"

int arm_enable(int uffd, struct error *e)
{
    const struct kernel_features *kernel = kernel_probe();
    uint64_t features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_REMOVE |
                        UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP;
    if (kernel->wp_shmem)
        features |= UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
    int ret = uffd_enable(uffd, features);
    if (ret)
        return error_set(e, VMSNAP_EXIT_KERNEL, -ret,
                         "userfaultfd write protection is not available");
    return 0;
}

static int refuse_taken(const struct region *r, struct error *e)
{
    error_set(e, VMSNAP_EXIT_BUSY, EBUSY, "%s is under another userfaultfd already", r->name);
    error_hint(e, "is another snapshot, or the restore of this VM, still running?");
    return -EBUSY;
}

int arm_check_free(const struct target *t, const struct region *regions, uint32_t n_regions,
                   struct error *e)
{
    struct mapping_list maps;
    int ret = target_mappings(t, &maps, e);
    if (ret)
        return ret;
    for (size_t k = 0; !ret && k < maps.count; k++) {
        const struct mapping *m = &maps.items[k];
        bool taken = m->uffd_missing || m->uffd_wp || m->uffd_minor;
        for (uint32_t i = 0; taken && !ret && i < n_regions; i++)
            if (m->start < regions[i].hva + regions[i].max_bytes && m->end > regions[i].hva)
                ret = refuse_taken(&regions[i], e);
    }
    mapping_list_free(&maps);
    return ret;
}

int arm_register(int uffd, const struct region *r, struct error *e)
{
    uint64_t modes = UFFDIO_REGISTER_MODE_WP;
    if (r->kind == REGION_ANON && r->page_bytes == 4096)
        modes |= UFFDIO_REGISTER_MODE_MISSING;
    int ret = uffd_register(uffd, r->hva, region_whole_pages(r, r->bytes), modes, NULL);
    if (ret == -EBUSY)
        return refuse_taken(r, e);
    if (ret)
        error_set(e, VMSNAP_EXIT_KERNEL, -ret, "cannot register %s with userfaultfd", r->name);
    return ret;
}

/* The mistake that a test build can make: the largest block stays unprotected. */
static const struct cluster_range *forgotten(const struct cluster_map *map)
{
    const struct cluster_range *largest = NULL;
    if (TESTHOOK_BROKEN("unprotected-block"))
        for (uint32_t i = 0; i < map->n_ranges; i++)
            if (!largest || map->ranges[i].n_clusters > largest->n_clusters)
                largest = &map->ranges[i];
    return largest;
}

/* Protects the LOOSE clusters of a block, run by run: all of it in one call where none was
 * protected before. No state is changed: after the instant LOOSE means the same as FROZEN. */
static int protect_loose(const struct cluster_map *map, const struct cluster_range *r,
                         uint64_t deadline, uint64_t *n_clusters)
{
    uint64_t from = r->first, end = r->first + r->n_clusters;
    while ((from = cluster_map_next_loose(map, from, end, true)) < end) {
        uint64_t to = cluster_map_next_loose(map, from, end, false);
        int ret;
        cluster_range_whole_units(r, &from, &to);
        while ((ret = uffd_protect(r->shard->uffd, cluster_hva(r, from),
                                   cluster_span_bytes(r, from, to))) == -EAGAIN &&
               clock_monotonic_ns() < deadline)
            sched_yield(); /* the fault thread reads the event that is in the way */
        if (ret)
            return ret;
        *n_clusters += to - from;
        from = to;
    }
    return 0;
}

/* Not every failure is the kernel's: the VM may have ended, or have unmapped the block. */
static int cannot_protect(const struct region *r, int err, struct error *e)
{
    if (err == -ESRCH) {
        if (e)
            e->guest = GUEST_ENDED;
        return error_set(e, VMSNAP_EXIT_TARGET, ESRCH, "the VM's process ended in mid-snapshot");
    }
    if (err != -ENOENT)
        return error_set(e, VMSNAP_EXIT_KERNEL, -err, "cannot write-protect %s", r->name);
    error_set(e, VMSNAP_EXIT_FAILED, EIO, "%s was unmapped by the VM before it was protected",
              r->name);
    error_hint(e, "was memory unplugged? try again");
    return -EIO;
}

int arm_protect(const struct cluster_map *map, int timeout_ms, uint64_t *n_clusters,
                struct error *e)
{
    uint64_t deadline = clock_monotonic_ns() + (uint64_t)timeout_ms * 1000000u;
    const struct cluster_range *skip = forgotten(map);
    *n_clusters = 0;
    for (uint32_t i = 0; i < map->n_ranges; i++) {
        const struct cluster_range *r = &map->ranges[i];
        int ret = r == skip ? 0 : protect_loose(map, r, deadline, n_clusters);
        if (ret)
            return cannot_protect(r->region, ret, e);
    }
    return 0;
}

void arm_release(const struct cluster_map *map)
{
    for (uint32_t i = 0; i < map->n_ranges; i++) {
        const struct region *r = map->ranges[i].region;
        uffd_unregister_pieces(map->ranges[i].shard->uffd, r->hva, region_whole_pages(r, r->bytes));
    }
}
