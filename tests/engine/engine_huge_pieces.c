/*
 * Which huge pages in pieces are put together: those that were huge before and are all there, of
 * private and of shared memory. What the process has discarded meanwhile stays a hole, what never
 * was huge stays small, and the huge page that is all zeros takes no memory.
 */
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/kernel.h"
#include "common/target/collapse.h"
#include "snapshot/memory/huge.h"
#include "tests/kernel/ktest.h"

#define UNITS 6u
#define BYTES (UNITS * COLLAPSE_BYTES)
#define PAGE 4096u

/* What becomes of each unit while it is nobody's. */
enum { KEPT, SPLIT, SPLIT_LAST, WITH_HOLE, SMALL, ALL_ZERO };

struct board {
    bool shared;
    uint64_t hva;
    int fd;        /* of shared memory, the same number here: made before the fork */
    atomic_int at; /* 1: memory is there; 2: take to pieces; 3: done; -errno: can't be had */
};

static char *unit(const struct board *b, unsigned n)
{
    return (char *)(uintptr_t)b->hva + n * COLLAPSE_BYTES;
}

/* Memory of small pages, or of huge ones where the kernel gives one. */
static int fill(const struct board *b, unsigned n)
{
    char *at = unit(b, n);
    bool huge = n != SMALL;
    if (n == ALL_ZERO && b->shared)
        return 0; /* shared memory has no such page: it stays a hole */
    if (!b->shared)
        madvise(at, COLLAPSE_BYTES, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    if (n == ALL_ZERO)
        return *(volatile char *)at;
    memset(at, 'a' + (int)n, COLLAPSE_BYTES);
    return b->shared && huge && madvise(at, COLLAPSE_BYTES, MADV_COLLAPSE) ? -errno : 0;
}

/* One page with another protection: its huge page is mapped by small ones from then on. */
static void split(const struct board *b, unsigned n)
{
    mprotect(unit(b, n) + 5 * PAGE, PAGE, PROT_READ);
    mprotect(unit(b, n) + 5 * PAGE, PAGE, PROT_READ | PROT_WRITE);
}

static int be_process(void *opaque)
{
    struct board *b = opaque;
    int flags = b->shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, failed = 0;
    char *room = mmap(NULL, BYTES + COLLAPSE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    b->hva = ((uintptr_t)room + COLLAPSE_BYTES - 1) / COLLAPSE_BYTES * COLLAPSE_BYTES;
    if (mmap((void *)(uintptr_t)b->hva, BYTES, PROT_READ | PROT_WRITE, flags | MAP_FIXED, b->fd,
             0) == MAP_FAILED)
        failed = -errno;
    for (unsigned n = 0; n < UNITS && !failed; n++)
        failed = fill(b, n);
    atomic_store(&b->at, failed ? failed : 1);
    while (atomic_load(&b->at) != 2)
        usleep(1000);
    split(b, SPLIT);
    split(b, SPLIT_LAST);
    split(b, WITH_HOLE);
    madvise(unit(b, WITH_HOLE) + 7 * PAGE, PAGE, b->shared ? MADV_REMOVE : MADV_DONTNEED);
    atomic_store(&b->at, 3);
    pause();
    return 0;
}

static int await(const struct board *b, int at)
{
    struct board *board = (struct board *)b;
    for (int tries = 0; atomic_load(&board->at) != at && tries < 5000; tries++)
        usleep(1000);
    return atomic_load(&board->at) == at ? 0 : -ETIMEDOUT;
}

/* AnonHugePages or ShmemPmdMapped, and Rss, of all that is mapped there. */
static uint64_t huge_bytes(const struct target *t, const struct board *b)
{
    struct mapping_list maps;
    struct error e = {0};
    uint64_t bytes = 0;
    if (target_mappings(t, &maps, &e))
        return UINT64_MAX;
    for (size_t i = 0; i < maps.count; i++)
        if (maps.items[i].start < b->hva + BYTES && maps.items[i].end > b->hva)
            bytes += maps.items[i].anon_huge_bytes;
    mapping_list_free(&maps);
    return bytes;
}

static bool is_hole(const struct target *t, const struct board *b, unsigned n, unsigned page)
{
    off_t offset = (off_t)(n * COLLAPSE_BYTES + page * PAGE);
    enum page_presence presence = PAGE_PRESENT;
    if (b->shared)
        return lseek(b->fd, offset, SEEK_HOLE) == offset;
    return !target_presence(t, b->hva + (uint64_t)offset, 1, &presence) && presence == PAGE_ABSENT;
}

static int put_together(const void *arg)
{
    struct board *b = ktest_shared(sizeof(*b));
    struct error e = {0};
    struct target t;
    struct huge *h;
    KTEST_SKIP_IF(geteuid() != 0 || !collapse_is_possible(), "needs root and MADV_COLLAPSE");
    b->shared = *(const bool *)arg;
    b->fd = b->shared ? memfd_create("pieces", MFD_CLOEXEC) : -1;
    KTEST_CHECK(!b->shared || ftruncate(b->fd, (off_t)BYTES) == 0, "%s", strerror(errno));
    pid_t pid = ktest_spawn(be_process, b);
    for (int tries = 0; atomic_load(&b->at) == 0 && tries < 5000; tries++)
        usleep(1000);
    KTEST_SKIP_IF(atomic_load(&b->at) < 0, "no huge pages for it: %s",
                  strerror(-atomic_load(&b->at)));
    KTEST_CHECK(target_open(&t, pid, &e) == 0, "%s", e.message);
    struct region r = {.name = "pieces",
                       .hva = b->hva,
                       .bytes = BYTES,
                       .max_bytes = BYTES,
                       .page_bytes = PAGE,
                       .kind = b->shared ? REGION_SHARED : REGION_ANON,
                       .fd = b->fd};
    uint64_t before = huge_bytes(&t, b);
    KTEST_SKIP_IF(before == 0, "transparent huge pages are off here");
    KTEST_CHECK(before == 4 * COLLAPSE_BYTES, "%llu bytes are huge", (unsigned long long)before);
    KTEST_CHECK(huge_note(&h, &t, &r, 1, NULL, NULL) == 0, "no memory");
    KTEST_CHECK(huge_bytes_before(h) == before, "%llu noted",
                (unsigned long long)huge_bytes_before(h));
    atomic_store(&b->at, 2);
    KTEST_CHECK(await(b, 3) == 0, "the process does not answer");
    uint64_t meanwhile = huge_bytes(&t, b);
    KTEST_CHECK(meanwhile == COLLAPSE_BYTES, "%llu bytes", (unsigned long long)meanwhile);
    KTEST_CHECK(huge_start(h) == 0 && huge_event_fd(h) >= 0, "it does not start");
    struct pollfd done = {.fd = huge_event_fd(h), .events = POLLIN};
    KTEST_CHECK(poll(&done, 1, 10000) == 1, "it does not end");
    huge_stop(h);
    uint64_t after = huge_bytes(&t, b);
    KTEST_CHECK(after == 3 * COLLAPSE_BYTES, "%llu bytes", (unsigned long long)after);
    KTEST_CHECK(huge_bytes_after(h) == after, "%llu told", (unsigned long long)huge_bytes_after(h));
    KTEST_CHECK(is_hole(&t, b, WITH_HOLE, 7), "what was discarded is memory again");
    char page[PAGE];
    for (unsigned n = KEPT; n <= SMALL; n++)
        KTEST_CHECK(target_read(&t, b->hva + n * COLLAPSE_BYTES + 5 * PAGE, page, PAGE) == PAGE &&
                        page[0] == 'a' + (int)n && page[PAGE - 1] == page[0],
                    "unit %u holds something else", n);
    huge_free(h);
    target_close(&t);
    return KTEST_PASS;
}

static int ends_with_the_process(const void *arg)
{
    (void)arg;
    struct board *b = ktest_shared(sizeof(*b));
    struct error e = {0};
    struct target t;
    struct huge *h;
    KTEST_SKIP_IF(geteuid() != 0 || !collapse_is_possible(), "needs root and MADV_COLLAPSE");
    b->fd = -1;
    pid_t pid = ktest_spawn(be_process, b);
    KTEST_CHECK(await(b, 1) == 0, "no process");
    KTEST_CHECK(target_open(&t, pid, &e) == 0, "%s", e.message);
    struct region r = {
        .hva = b->hva, .bytes = BYTES, .page_bytes = PAGE, .kind = REGION_ANON, .fd = -1};
    KTEST_CHECK(huge_note(&h, &t, &r, 1, NULL, NULL) == 0, "no memory");
    KTEST_SKIP_IF(huge_bytes_before(h) == 0, "transparent huge pages are off here");
    ktest_end(pid);
    KTEST_CHECK(huge_start(h) == 0, "it does not start");
    struct pollfd done = {.fd = huge_event_fd(h), .events = POLLIN};
    KTEST_CHECK(poll(&done, 1, 5000) == 1, "it does not end");
    huge_free(h);
    target_close(&t);
    return KTEST_PASS;
}

int main(int argc, char **argv)
{
    static const bool shared = true, private = false;
    static const struct ktest_case cases[] = {
        {"private memory", put_together, &private},
        {"shared memory", put_together, &shared},
        {"the process ends", ends_with_the_process, NULL},
    };
    return ktest_main(argc, argv, cases, sizeof(cases) / sizeof(*cases));
}
