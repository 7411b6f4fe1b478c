/*
 * target_scan.c - what is present, asked for with PAGEMAP_SCAN (Linux 6.7), which skips holes
 * without looking at each page of them; where that is missing, by reading pagemap.
 *
 * PAGEMAP_SCAN can't tell swap from markers (both are "swapped"), so
 * where it says so pagemap is read for the entry. And it works on an address space that is gone,
 * finding it empty; reading pagemap fails then, which is why one entry is read after each scan.
 */
#include <errno.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/kernel.h"
#include "common/target.h"
#include "common/uffd.h"

#define PAGE_BYTES 4096u
#define SCAN_RANGES 64u
/* mmap_lock is held while a range is walked. */
#define SCAN_HOLE_BYTES (256ull << 20)

/* linux/fs.h, 6.7 */
struct scan_range {
    uint64_t start, end, categories;
};
#define SCAN_PRESENT (1u << 3)
#define SCAN_SWAPPED (1u << 4)

/* Up to `room` ranges of [start, end) that are not holes, of at most max_pages (0: any number) in
 * all; *walked: how far it came. Returns their
 * number or -errno. */
static int scan(const struct target *t, uint64_t start, uint64_t end, struct scan_range *ranges,
                size_t room, uint64_t max_pages, uint64_t *walked)
{
    struct pm_scan_arg arg = {.size = sizeof(arg),
                              .start = start,
                              .end = end,
                              .vec = (uintptr_t)ranges,
                              .vec_len = room,
                              .max_pages = max_pages,
                              .category_anyof_mask = SCAN_PRESENT | SCAN_SWAPPED,
                              .return_mask = SCAN_PRESENT | SCAN_SWAPPED};
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

static int enter_range(const struct target *t, uint64_t hva, const struct scan_range *r,
                       enum page_presence *out)
{
    size_t first = (size_t)((r->start - hva) / PAGE_BYTES);
    size_t n = (size_t)((r->end - r->start) / PAGE_BYTES);
    if (r->categories & SCAN_SWAPPED)
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
    uint64_t end = hva + n_pages * PAGE_BYTES;
    for (size_t i = 0; i < n_pages; i++)
        out[i] = PAGE_ABSENT;
    for (uint64_t at = hva, walked = end; at < end; at = walked) {
        struct scan_range ranges[SCAN_RANGES];
        int n = scan(t, at, end, ranges, SCAN_RANGES, 0, &walked);
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
    struct scan_range first = {0};
    uint64_t walked = hva;
    int n = scan(t, hva, end, &first, 1, 1, &walked);
    if (n < 0)
        return n;
    *hole_end = n > 0 ? first.start : walked;
    return check_alive(t, hva);
}
