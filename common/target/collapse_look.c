#include "common/target/collapse_look.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/kernel.h"
#include "common/target/collapse.h"

#define PAGE_BYTES 4096u
#define UNIT_PAGES (COLLAPSE_BYTES / PAGE_BYTES)
#define FILE_VALID_NS 50000000u /* holes may be punched meanwhile */

/* /proc/PID/pagemap, /proc/kpageflags: kernel doc admin-guide/mm/pagemap. */
#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_FRAME ((1ull << 55) - 1)
#define KPAGEFLAGS_THP (1ull << 22)
#define KPAGEFLAGS_ZERO_PAGE (1ull << 24)

int collapse_look_open(struct collapse_look *k, const struct target *t)
{
    *k = (struct collapse_look){.target = t, .kpageflags_fd = -1};
    if (kernel_probe()->pagemap_scan)
        return 0;
    k->kpageflags_fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
    return k->kpageflags_fd < 0 ? -errno : 0;
}

void collapse_look_close(struct collapse_look *k)
{
    if (k->kpageflags_fd >= 0)
        close(k->kpageflags_fd);
    k->kpageflags_fd = -1;
}

void collapse_look_forget(struct collapse_look *k)
{
    k->file_of = NULL;
}

/* SEEK_HOLE walks a file up to its next hole, under the inode's lock: so for a while it is not
 * asked again about what it has walked. */
static bool file_is_whole(struct collapse_look *k, const struct region *r, uint64_t hva)
{
    uint64_t offset = r->fd_offset + (hva - r->hva);
    uint64_t now = clock_monotonic_ns();
    if (k->file_of != r || offset < k->file_from || offset >= k->file_to ||
        now - k->file_ns > FILE_VALID_NS) {
        off_t hole = lseek(r->fd, (off_t)offset, SEEK_HOLE);
        k->file_of = r;
        k->file_ns = now;
        k->file_from = offset;
        k->file_to = hole < 0 ? offset : (uint64_t)hole;
    }
    return offset + COLLAPSE_BYTES <= k->file_to;
}

static int look_by_scan(const struct target *t, uint64_t hva, enum collapse_state *state)
{
    static const struct target_query query = {
        .any = TARGET_PRESENT, .none = TARGET_ZERO, .tell = TARGET_PRESENT | TARGET_HUGE};
    struct target_pages found[2];
    uint64_t walked;
    int n = target_scan(t, hva, hva + COLLAPSE_BYTES, &query, found, 2, &walked);
    if (n < 0)
        return n;
    *state = COLLAPSE_HOLES;
    if (n == 1 && found[0].end - found[0].start == COLLAPSE_BYTES)
        *state = found[0].categories & TARGET_HUGE ? COLLAPSE_HUGE : COLLAPSE_WHOLE;
    return 0;
}

/* Whether a page frame is one of a huge page, but not of the one that is all zeros. */
static int is_of_huge_page(const struct collapse_look *k, uint64_t frame, bool *yes)
{
    uint64_t flags;
    ssize_t n = pread(k->kpageflags_fd, &flags, sizeof(flags), (off_t)(frame * sizeof(flags)));
    if (n != (ssize_t)sizeof(flags))
        return n < 0 ? -errno : -EIO;
    *yes = (flags & KPAGEFLAGS_THP) && !(flags & KPAGEFLAGS_ZERO_PAGE);
    return 0;
}

/* Without PAGEMAP_SCAN: never COLLAPSE_WHOLE, since nothing tells a zero page in it. */
static int look_by_frames(const struct collapse_look *k, uint64_t hva, enum collapse_state *state)
{
    uint64_t entries[UNIT_PAGES];
    off_t at = (off_t)(hva / PAGE_BYTES * sizeof(entries[0]));
    *state = COLLAPSE_HOLES;
    ssize_t n = pread(k->target->pagemap_fd, entries, sizeof(entries), at);
    if (n < 0)
        return -errno;
    uint64_t first = entries[0] & PAGEMAP_FRAME;
    if (n != (ssize_t)sizeof(entries) || first == 0 || first % UNIT_PAGES != 0)
        return 0;
    for (uint64_t i = 0; i < UNIT_PAGES; i++)
        if (!(entries[i] & PAGEMAP_PRESENT) || (entries[i] & PAGEMAP_FRAME) != first + i)
            return 0;
    bool yes = false;
    int ret = is_of_huge_page(k, first, &yes);
    if (yes)
        *state = COLLAPSE_HUGE;
    return ret;
}

int collapse_look_at(struct collapse_look *k, const struct region *r, uint64_t hva,
                     enum collapse_state *state)
{
    int ret =
        k->kpageflags_fd < 0 ? look_by_scan(k->target, hva, state) : look_by_frames(k, hva, state);
    if (!ret && *state == COLLAPSE_HOLES && r->kind == REGION_SHARED && file_is_whole(k, r, hva))
        *state = COLLAPSE_WHOLE;
    return ret;
}

int collapse_look_huge(const struct collapse_look *k, uint64_t hva, bool *huge)
{
    /* The first page tells; a walk over 512 small ones took 60 us and more. */
    static const struct target_query query = {.any = TARGET_PRESENT,
                                              .none = TARGET_ZERO,
                                              .tell = TARGET_PRESENT | TARGET_HUGE,
                                              .max_pages = 1};
    struct target_pages first = {0};
    enum collapse_state state = COLLAPSE_HOLES;
    uint64_t walked;
    int ret = k->kpageflags_fd < 0
                  ? target_scan(k->target, hva, hva + COLLAPSE_BYTES, &query, &first, 1, &walked)
                  : look_by_frames(k, hva, &state);
    *huge = k->kpageflags_fd < 0
                ? ret == 1 && first.start == hva && (first.categories & TARGET_HUGE)
                : state == COLLAPSE_HUGE;
    return ret < 0 ? ret : 0;
}
