/*
 * Which memory is protected before the instant.
 *
 * What protecting costs in the pause depends on how memory is mapped (per GiB): 5 to 10 ms by 4 KiB
 * pages, and for shared memory however it is mapped, its holes too; 0.02 ms by huge pages; next to
 * nothing for holes of private anonymous memory. What protecting earlier costs is a fault at each
 * first write meanwhile, and for a huge page that it is split by it. So huge pages are left to the
 * pause, and so is everything when there is little of the rest.
 */
#include <errno.h>

#include "common/kernel.h"
#include "common/log.h"
#include "common/testhook.h"
#include "common/uffd.h"
#include "snapshot/save/live.h"

/* Less than this costs about a millisecond in the pause. */
#define WORTH_BYTES (128ull << 20)

#define SCAN_RESULTS 512u

struct choice {
    struct live *l;
    uint64_t dear_bytes; /* what of it costs time in the pause */
    uint64_t huge_bytes;
};

static void track(struct choice *k, uint64_t from, uint64_t to)
{
    if (to <= from)
        return;
    cluster_map_track_all(&k->l->capture->map, from, to);
    k->l->n_tracked += to - from;
}

/* Tracks what of [hva, end) is not on huge pages; a cluster that is partly so is not. */
static int track_small_pages(struct choice *k, const struct cluster_range *r)
{
    static const struct target_query query = {.any = TARGET_PRESENT | TARGET_SWAPPED,
                                              .tell = TARGET_HUGE};
    struct target_pages found[SCAN_RESULTS];
    uint64_t base = r->region->hva, end = base + r->region->bytes;
    uint64_t next = r->first, limit = r->first + r->n_clusters;
    for (uint64_t at = base, walked; at < end; at = walked) {
        uint64_t to = end - at > UFFD_PIECE_BYTES ? at + UFFD_PIECE_BYTES : end;
        int n = target_scan(k->l->capture->target, at, to, &query, found, SCAN_RESULTS, &walked);
        if (n < 0)
            return n;
        for (int i = 0; i < n; i++) {
            const struct target_pages *p = &found[i];
            if (!(p->categories & TARGET_HUGE)) {
                k->dear_bytes += p->end - p->start;
                continue;
            }
            k->huge_bytes += p->end - p->start;
            track(k, next, r->first + (p->start - base) / IMAGE_CLUSTER_BYTES);
            next = r->first + (p->end - base + IMAGE_CLUSTER_BYTES - 1) / IMAGE_CLUSTER_BYTES;
        }
    }
    track(k, next, limit);
    return 0;
}

static int count_present(const struct target *t, const struct region *r, uint64_t *bytes)
{
    enum page_presence presence[512];
    *bytes = 0;
    for (uint64_t at = 0; at < r->bytes; at += sizeof(presence) / sizeof(*presence) * 4096) {
        uint64_t n = (r->bytes - at) / 4096;
        if (n > sizeof(presence) / sizeof(*presence))
            n = sizeof(presence) / sizeof(*presence);
        int ret = target_presence(t, r->hva + at, n, presence);
        if (ret)
            return ret;
        for (uint64_t i = 0; i < n; i++)
            *bytes += presence[i] == PAGE_PRESENT ? 4096 : 0;
    }
    return 0;
}

/* Without PAGEMAP_SCAN (before 6.7) nothing says which pages are huge, only how many are: the
 * larger part decides for the whole block. */
static int track_by_majority(struct choice *k, const struct cluster_range *r, struct error *e)
{
    const struct region *region = r->region;
    struct mapping_list maps;
    uint64_t present, huge = 0;
    int ret = count_present(k->l->capture->target, region, &present);
    if (!ret)
        ret = target_mappings(k->l->capture->target, &maps, e);
    if (ret)
        return ret;
    for (size_t i = 0; i < maps.count; i++)
        if (maps.items[i].start < region->hva + region->bytes && maps.items[i].end > region->hva)
            huge += maps.items[i].anon_huge_bytes;
    mapping_list_free(&maps);
    if (huge > present)
        huge = present; /* some of it lies beside the block */
    k->huge_bytes += huge;
    if (huge > present / 2)
        return 0;
    k->dear_bytes += present - huge;
    track(k, r->first, r->first + r->n_clusters);
    return 0;
}

static int choose_range(struct choice *k, const struct cluster_range *r, bool all, struct error *e)
{
    if (r->region->page_bytes > IMAGE_PAGE_BYTES) {
        k->huge_bytes += r->region->bytes;
        if (all)
            track(k, r->first, r->first + r->n_clusters);
        return 0;
    }
    if (all || r->region->kind != REGION_ANON) {
        k->dear_bytes += r->region->bytes;
        track(k, r->first, r->first + r->n_clusters);
        return 0;
    }
    if (!kernel_probe()->pagemap_scan)
        return track_by_majority(k, r, e);
    int ret = track_small_pages(k, r);
    return ret ? error_set(e, VMSNAP_EXIT_FAILED, -ret, "cannot tell how %s is mapped",
                           r->region->name)
               : 0;
}

static void leave_all(struct live *l)
{
    for (uint64_t cluster = 0; cluster < l->capture->map.n_clusters; cluster++)
        cluster_leave(&l->capture->map, cluster);
    l->n_tracked = 0;
}

int live_choose(struct live *l, enum snapshot_live mode, bool all, struct error *e)
{
    struct choice k = {.l = l};
    l->n_tracked = 0;
    if ((mode == LIVE_NEVER || TESTHOOK_MASKED("snapshot.live")) && !all)
        return 0;
    for (uint32_t i = 0; i < l->capture->map.n_ranges; i++) {
        int ret = choose_range(&k, &l->capture->map.ranges[i], all, e);
        if (ret)
            return ret;
    }
    bool worth = all || mode == LIVE_ALWAYS || k.dear_bytes >= WORTH_BYTES;
    log_info("live arming: %s: %.1f MiB are mapped by small pages or shared, %.1f MiB by huge ones "
             "(from %.0f MiB of the former on it pays)",
             worth ? "yes" : "no", (double)k.dear_bytes / 1048576, (double)k.huge_bytes / 1048576,
             (double)WORTH_BYTES / 1048576);
    if (!worth)
        leave_all(l);
    return 0;
}
