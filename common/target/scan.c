/*
 * scan.c - what is present, asked for with PAGEMAP_SCAN (Linux 6.7), which skips holes
 * without looking at each page of them; where that is missing, by reading pagemap.
 *
 * PAGEMAP_SCAN can't tell swap from markers (both are "swapped"), so where it says so pagemap is
 * read for the entry. And it works on an address space that is gone, finding it empty; reading
 * pagemap fails then, which is why one entry is read after each scan.
 */
#include <assert.h>
#include <errno.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/kernel.h"
#include "common/target/target.h"
#include "common/uffd.h"

/* struct page_region of linux/fs.h */
static_assert(sizeof(struct target_pages) == 24, "as the kernel writes it");

#define PAGE_BYTES 4096u
#define SCAN_RANGES 64u
/* mmap_lock is held while a range is walked. */
#define SCAN_HOLE_BYTES (256ull << 20)

int target_scan(const struct target *t, uint64_t start, uint64_t end, const struct target_query *q,
                struct target_pages *out, size_t room, uint64_t *walked)
{
    struct pm_scan_arg arg = {.size = sizeof(arg),
                              .start = start,
                              .end = end,
                              .vec = (uintptr_t)out,
                              .vec_len = room,
                              .max_pages = q->max_pages,
                              .category_inverted = q->none,
                              .category_mask = q->none,
                              .category_anyof_mask = q->any,
                              .return_mask = q->tell};
    int n = ioctl(t->pagemap_fd, PAGEMAP_SCAN, &arg);
    if (n < 0)
        return -errno;
    *walked = arg.walk_end > start ? arg.walk_end : end;
    return n;
}

/* Whether what a scan before this saw was an address space, not the rest of one. */
static int check_alive(const struct target *t, uint64_t hva)
{
    enum page_presence unused;
    return target_presence(t, hva, 1, &unused);
}

static int enter_range(const struct target *t, uint64_t hva, const struct target_pages *r,
                       enum page_presence *out)
{
    size_t first = (size_t)((r->start - hva) / PAGE_BYTES);
    size_t n = (size_t)((r->end - r->start) / PAGE_BYTES);
    if (r->categories & TARGET_SWAPPED)
        return target_presence(t, r->start, n, out + first);
    for (size_t i = 0; i < n; i++)
        out[first + i] = PAGE_PRESENT;
    return 0;
}

int target_presence_scan(const struct target *t, uint64_t hva, size_t n_pages,
                         enum page_presence *out)
{
    if (!kernel_probe()->pagemap_scan)
        return target_presence(t, hva, n_pages, out);
    static const struct target_query query = {.any = TARGET_PRESENT | TARGET_SWAPPED,
                                              .tell = TARGET_PRESENT | TARGET_SWAPPED};
    uint64_t end = hva + n_pages * PAGE_BYTES;
    for (size_t i = 0; i < n_pages; i++)
        out[i] = PAGE_ABSENT;
    for (uint64_t at = hva, walked = end; at < end; at = walked) {
        struct target_pages ranges[SCAN_RANGES];
        int n = target_scan(t, at, end, &query, ranges, SCAN_RANGES, &walked);
        if (n < 0)
            return n;
        for (int i = 0; i < n; i++) {
            int ret = enter_range(t, hva, &ranges[i], out);
            if (ret)
                return ret;
        }
    }
    return check_alive(t, hva);
}

int target_hole_end(const struct target *t, uint64_t hva, uint64_t end, uint64_t *hole_end)
{
    *hole_end = hva;
    if (!kernel_probe()->pagemap_scan)
        return 0;
    if (end - hva > SCAN_HOLE_BYTES)
        end = hva + SCAN_HOLE_BYTES;
    static const struct target_query query = {.any = TARGET_PRESENT | TARGET_SWAPPED,
                                              .tell = TARGET_PRESENT | TARGET_SWAPPED,
                                              .max_pages = 1};
    struct target_pages first = {0};
    uint64_t walked = hva;
    int n = target_scan(t, hva, end, &query, &first, 1, &walked);
    if (n < 0)
        return n;
    *hole_end = n > 0 ? first.start : walked;
    return check_alive(t, hva);
}
