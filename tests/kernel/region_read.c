/*
 * region_read(), region_look_read() and what they stand on: kinds of memory told apart, absent,
 * present and poisoned pages, with and without a userfaultfd; and nothing is allocated in the
 * target by looking.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/inject/inject.h"
#include "common/kernel.h"
#include "common/target/region_look.h"
#include "common/uffd.h"
#include "ktest.h"
#include "puppet.h"

#define PAGE 4096ul
#define HUGE_PAGES 512ul /* 4 KiB pages in a huge one */
#define TIMEOUT_MS 5000
#define MAX_PAGES (4 * HUGE_PAGES)

/* Every third page, a run of 64, and nothing in the second half. */
static bool some(size_t page)
{
    return page < 128 ? page % 3 == 0 : page < 192;
}

/* One of three huge pages. */
static bool some_huge(size_t page)
{
    return page / HUGE_PAGES == 1;
}

struct layout {
    enum puppet_memory memory;
    size_t n_pages;
    bool (*filled)(size_t page);
    enum region_kind kind;
    size_t page_bytes;
};

static const struct layout layouts[] = {
    {PUPPET_ANON, 512, some, REGION_ANON, PAGE},
    {PUPPET_MEMFD, 512, some, REGION_SHARED, PAGE},
    {PUPPET_SHARED_ANON, 512, some, REGION_SHARED, PAGE},
    {PUPPET_PRIVATE_TMPFS, 512, some, REGION_PRIVATE_FILE, PAGE},
    {PUPPET_HUGE_SHARED, 3 * HUGE_PAGES, some_huge, REGION_SHARED, HUGE_PAGES *PAGE},
    {PUPPET_HUGE_PRIVATE, 3 * HUGE_PAGES, some_huge, REGION_PRIVATE_FILE, HUGE_PAGES *PAGE},
};

/* What a look must not change. */
struct footprint {
    enum page_presence presence[MAX_PAGES];
    uint64_t rss_kib;
    long long blocks;
};

static void footprint_take(struct footprint *f, const struct puppet *p, const struct region *r,
                           size_t n_pages)
{
    struct stat st = {0};
    memset(f, 0, sizeof(*f));
    if (target_presence(puppet_target(p), r->hva, n_pages, f->presence) != 0)
        abort();
    f->rss_kib = ktest_status(puppet_pid(p), "VmRSS") + ktest_status(puppet_pid(p), "HugetlbPages");
    if (r->fd >= 0)
        fstat(r->fd, &st);
    f->blocks = st.st_blocks;
}

static bool all_bytes(const uint8_t *page, uint8_t value)
{
    for (size_t i = 0; i < PAGE; i++) {
        if (page[i] != value)
            return false;
    }
    return true;
}

static int check_page(size_t page, const uint8_t *data, bool told_bad, bool (*filled)(size_t),
                      bool (*poisoned)(size_t))
{
    bool is_bad = poisoned && poisoned(page), is_filled = filled(page) && !is_bad;
    KTEST_CHECK(all_bytes(data, is_filled ? puppet_pattern(page) : 0), "page %zu has byte 0x%02x",
                page, data[0]);
    KTEST_CHECK(told_bad == is_bad, "page %zu: poisoned: %d", page, (int)told_bad);
    return KTEST_PASS;
}

/* Reads it all in pieces of `step` pages. `poisoned(i)` may be NULL. */
static int check_content(const struct puppet *p, const struct region *r, size_t n_pages,
                         unsigned step, bool (*filled)(size_t), bool (*poisoned)(size_t))
{
    static uint8_t buf[64 * PAGE];
    for (size_t i = 0; i < n_pages; i += step) {
        unsigned n = n_pages - i < step ? (unsigned)(n_pages - i) : step;
        uint64_t zero, bad;
        memset(buf, 0xee, sizeof(buf));
        int err = region_read(r, puppet_target(p), i * PAGE, n, buf, &zero, &bad);
        KTEST_CHECK(err == 0, "page %zu: %s", i, strerror(-err));
        for (unsigned k = 0; k < n; k++) {
            if (check_page(i + k, buf + k * PAGE, bad >> k & 1, filled, poisoned) != KTEST_PASS)
                return KTEST_FAIL;
            bool is_bad = poisoned && poisoned(i + k), is_filled = filled(i + k) && !is_bad;
            KTEST_CHECK(!(zero >> k & 1) || !(is_filled || is_bad), "page %zu: taken for absent",
                        i + k);
            KTEST_CHECK(r->kind != REGION_ANON || is_filled || is_bad || (zero >> k & 1),
                        "page %zu: absent, not said to be", i + k);
        }
    }
    return KTEST_PASS;
}

#define PIECE_PAGES 4u
#define N_PIECES (REGION_LOOK_PAGES / PIECE_PAGES)

/* Reads what was looked at in pieces of a cluster, every other one first, into buffers that lie the
 * other way round. */
static int check_pieces(struct region_look *k, bool (*filled)(size_t), bool (*poisoned)(size_t))
{
    static uint8_t buf[REGION_LOOK_PAGES * PAGE];
    static struct region_piece pieces[N_PIECES];
    unsigned count = (k->n_pages + PIECE_PAGES - 1) / PIECE_PAGES, n = 0;
    memset(buf, 0xee, sizeof(buf));
    for (unsigned odd = 0; odd < 2; odd++)
        for (unsigned i = odd; i < count; i += 2) {
            unsigned left = k->n_pages - i * PIECE_PAGES;
            pieces[n++] = (struct region_piece){.first_page = i * PIECE_PAGES,
                                                .n_pages = left < PIECE_PAGES ? left : PIECE_PAGES,
                                                .to = buf + (count - 1 - i) * PIECE_PAGES * PAGE,
                                                .err = -EIO};
        }
    region_look_read(k, pieces, n);
    for (unsigned i = 0; i < n; i++) {
        const struct region_piece *p = &pieces[i];
        KTEST_CHECK(p->err == 0, "piece at page %u: %s", p->first_page, strerror(-p->err));
        for (unsigned j = 0; j < p->n_pages; j++)
            if (check_page(k->offset / PAGE + p->first_page + j, (uint8_t *)p->to + j * PAGE,
                           p->poisoned >> j & 1, filled, poisoned) != KTEST_PASS)
                return KTEST_FAIL;
    }
    return KTEST_PASS;
}

/* The same by looking at many pages at once. */
static int check_looked(const struct puppet *p, const struct region *r, size_t n_pages,
                        bool (*filled)(size_t), bool (*poisoned)(size_t))
{
    static struct region_look k;
    region_look_begin(&k, r, puppet_target(p));
    for (size_t i = 0; i < n_pages; i += REGION_LOOK_PAGES) {
        size_t left = n_pages - i;
        int err = region_look_at(&k, i * PAGE,
                                 (unsigned)(left < REGION_LOOK_PAGES ? left : REGION_LOOK_PAGES));
        KTEST_CHECK(err == 0, "a look at page %zu: %s", i, strerror(-err));
        for (unsigned j = 0; j < k.n_pages; j++)
            KTEST_CHECK(k.place[j] != PAGE_ZERO || !filled(i + j), "page %zu: taken for zero",
                        i + j);
        if (check_pieces(&k, filled, poisoned) != KTEST_PASS)
            return KTEST_FAIL;
    }
    return KTEST_PASS;
}

/* The same content, and the same footprint, however it is read. */
static int check_reads(const struct puppet *p, const struct region *r, const struct layout *l)
{
    static struct footprint before, after;
    const unsigned steps[] = {64, 4, 1, 0}; /* 0: all at once */
    for (unsigned i = 0; i < 4; i++) {
        footprint_take(&before, p, r, l->n_pages);
        int result = steps[i] ? check_content(p, r, l->n_pages, steps[i], l->filled, NULL)
                              : check_looked(p, r, l->n_pages, l->filled, NULL);
        if (result != KTEST_PASS)
            return KTEST_FAIL;
        footprint_take(&after, p, r, l->n_pages);
        KTEST_CHECK(memcmp(before.presence, after.presence, sizeof(before.presence)) == 0,
                    "reading changed what is present");
        KTEST_CHECK(before.blocks == after.blocks, "reading allocated %lld blocks in the file",
                    after.blocks - before.blocks);
        KTEST_CHECK(after.rss_kib <= before.rss_kib + 64, "resident %d KiB, was %d",
                    (int)after.rss_kib, (int)before.rss_kib);
    }
    return KTEST_PASS;
}

static uint64_t wp_modes(const struct region *r)
{
    return UFFDIO_REGISTER_MODE_WP | (r->kind == REGION_ANON ? UFFDIO_REGISTER_MODE_MISSING : 0);
}

/* A userfaultfd over the region, as a snapshot has it. Its fd or -errno. */
static int arm(const struct puppet *p, const struct region *r)
{
    struct error e = {0};
    int fd;
    int err = inject_userfaultfd(puppet_target(p), &fd, NULL, TIMEOUT_MS, &e);
    if (err == 0)
        err = uffd_enable(fd, UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
    if (err == 0)
        err = uffd_register(fd, r->hva, r->bytes, wp_modes(r), NULL);
    if (err == 0)
        err = uffd_protect(fd, r->hva, r->bytes);
    return err ? err : fd;
}

static int run_layout(const void *arg)
{
    const struct layout *l = arg;
    struct error e = {0};
    struct region r;
    struct puppet *p = puppet_start(l->memory, l->n_pages * PAGE, l->filled);
    KTEST_SKIP_IF(!p, "no %s memory here (free huge pages: see vm.nr_hugepages)",
                  puppet_memory_names[l->memory]);
    KTEST_CHECK(puppet_region(p, &r, &e) == 0, "%s", e.message);
    KTEST_CHECK(r.kind == l->kind && r.page_bytes == l->page_bytes, "kind %d, pages of %d KiB",
                r.kind, (int)(r.page_bytes >> 10));
    KTEST_CHECK((r.fd >= 0) == (r.kind != REGION_ANON), "file descriptor %d", r.fd);
    if (check_reads(p, &r, l) != KTEST_PASS)
        return KTEST_FAIL;
    int fd = arm(p, &r);
    KTEST_CHECK(fd >= 0, "can't arm: %s", strerror(-fd));
    if (check_reads(p, &r, l) != KTEST_PASS)
        return KTEST_FAIL;
    /* No event: nobody's reading went through a userfault. */
    struct uffd_msg msg;
    KTEST_CHECK(uffd_read_messages(fd, &msg, 1) == 0, "reading caused a userfault");
    close(fd);
    region_close(&r);
    return KTEST_PASS;
}

/* --- copies of a private file mapping -------------------------------------------------------- */

/* Pages that the process wrote come from its copies, the others from the file. */
static int private_copies(const void *arg)
{
    (void)arg;
    struct error e = {0};
    struct region r;
    uint8_t page[PAGE], seen;
    struct puppet *p = puppet_start(PUPPET_PRIVATE_TMPFS, 512 * PAGE, some);
    KTEST_CHECK(p && puppet_region(p, &r, &e) == 0, "%s", e.message);
    KTEST_CHECK(puppet_write(p, 0, 0xaa) && puppet_write(p, 1, 0xbb), "can't write");
    KTEST_CHECK(puppet_read(p, 3, &seen) && seen == puppet_pattern(3), "read 0x%02x", seen);
    int fd = arm(p, &r);
    KTEST_CHECK(fd >= 0, "can't arm: %s", strerror(-fd));
    const struct {
        size_t page;
        uint8_t first, middle;
    } want[] = {
        {0, puppet_pattern(0), 0xaa},              /* its copy of a page of the file */
        {1, 0, 0xbb},                              /* its copy of a hole */
        {3, puppet_pattern(3), puppet_pattern(3)}, /* the file's page, mapped */
        {6, puppet_pattern(6), puppet_pattern(6)}, /* the file's page, not mapped */
        {4, 0, 0},                                 /* a hole */
    };
    for (unsigned i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
        int err = region_read(&r, puppet_target(p), want[i].page * PAGE, 1, page, NULL, NULL);
        KTEST_CHECK(err == 0 && page[0] == want[i].first && page[PAGE / 2] == want[i].middle,
                    "page %zu: %d, 0x%02x 0x%02x", want[i].page, err, page[0], page[PAGE / 2]);
    }
    close(fd);
    region_close(&r);
    return KTEST_PASS;
}

/* --- poison ---------------------------------------------------------------------------------- */

static bool poisoned_pages(size_t page)
{
    return page == 1 || page == 130 + 128 || page == 511;
}

/* Absent pages are poisoned (of memfd: pages that have no content either). */
static int poison_in(enum puppet_memory memory)
{
    struct error e = {0};
    struct region r;
    struct puppet *p = puppet_start(memory, 512 * PAGE, some);
    KTEST_CHECK(p && puppet_region(p, &r, &e) == 0, "%s", e.message);
    int fd;
    KTEST_CHECK(inject_userfaultfd(puppet_target(p), &fd, NULL, TIMEOUT_MS, &e) == 0, "%s",
                e.message);
    KTEST_CHECK(uffd_enable(fd, UFFD_FEATURE_POISON | UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                                    UFFD_FEATURE_WP_HUGETLBFS_SHMEM) == 0,
                "no userfaultfd");
    int err = uffd_register(fd, r.hva, r.bytes,
                            UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP, NULL);
    KTEST_CHECK(err == 0, "register: %s", strerror(-err));
    for (size_t i = 0; i < 512; i++) {
        uint64_t done;
        if (!poisoned_pages(i))
            continue;
        err = uffd_poison(fd, r.hva + i * PAGE, PAGE, &done);
        KTEST_CHECK(err == 0 && done == PAGE, "page %zu: %s", i, strerror(-err));
    }
    KTEST_CHECK(uffd_poison(fd, r.hva, PAGE, NULL) == -EEXIST, "a present page was poisoned");
    static struct footprint before, after;
    footprint_take(&before, p, &r, 512);
    KTEST_CHECK(before.presence[1] == PAGE_POISONED && before.presence[0] == PAGE_PRESENT &&
                    before.presence[2] == PAGE_ABSENT,
                "presence of pages 0 to 2: %d %d %d", before.presence[0], before.presence[1],
                before.presence[2]);
    for (int armed = 0; armed < 2; armed++) {
        if (check_content(p, &r, 512, 64, some, poisoned_pages) != KTEST_PASS ||
            check_content(p, &r, 512, 1, some, poisoned_pages) != KTEST_PASS ||
            check_looked(p, &r, 512, some, poisoned_pages) != KTEST_PASS)
            return KTEST_FAIL;
        KTEST_CHECK(uffd_protect(fd, r.hva, r.bytes) == 0, "can't protect");
    }
    footprint_take(&after, p, &r, 512);
    KTEST_CHECK(memcmp(before.presence, after.presence, sizeof(before.presence)) == 0,
                "presence has changed");
    close(fd);
    KTEST_CHECK(check_content(p, &r, 512, 64, some, poisoned_pages) == KTEST_PASS,
                "after the userfaultfd is gone");
    region_close(&r);
    return KTEST_PASS;
}

static int poison(const void *arg)
{
    KTEST_SKIP_IF(!kernel_probe()->poison, "no UFFDIO_POISON");
    return poison_in(*(const enum puppet_memory *)arg);
}

/* --- what it must not take ------------------------------------------------------------------- */

/* A page that can't be read by its owner is not poisoned. */
static int not_readable(const void *arg)
{
    (void)arg;
    struct error e = {0};
    struct region r;
    uint8_t page[PAGE];
    uint64_t bad;
    struct puppet *p = puppet_start(PUPPET_ANON, 512 * PAGE, some);
    KTEST_CHECK(p && puppet_region(p, &r, &e) == 0, "%s", e.message);
    struct injector *inj;
    int64_t result;
    KTEST_CHECK(inject_begin(&inj, puppet_target(p), TIMEOUT_MS, &e) == 0, "%s", e.message);
    inject_syscall(inj, &result, 10 /* mprotect */, r.hva, PAGE, PROT_NONE, 0, 0, 0);
    KTEST_CHECK(inject_end(inj, &e) == 0 && result == 0, "mprotect: %d", (int)result);
    KTEST_CHECK(target_read(puppet_target(p), r.hva, page, PAGE) == -EFAULT, "it can be read");
    int err = region_read(&r, puppet_target(p), 0, 1, page, NULL, &bad);
    KTEST_CHECK(err == 0 && bad == 0 && all_bytes(page, puppet_pattern(0)), "%d, poisoned %d", err,
                (int)bad);
    KTEST_CHECK(check_looked(p, &r, 512, some, NULL) == KTEST_PASS, "all at once");
    return KTEST_PASS;
}

/* Unmapped, or its process gone: an error, not zeros. */
static int not_there(const void *arg)
{
    (void)arg;
    struct error e = {0};
    struct region r;
    uint8_t page[PAGE];
    struct puppet *p = puppet_start(PUPPET_ANON, 512 * PAGE, some);
    KTEST_CHECK(p && puppet_region(p, &r, &e) == 0, "%s", e.message);
    r.bytes = r.max_bytes = 1ull << 40;
    struct mapping_list maps;
    KTEST_CHECK(target_mappings(puppet_target(p), &maps, &e) == 0, "%s", e.message);
    int err = region_classify(&r, puppet_target(p), &maps, &e);
    KTEST_CHECK(err < 0 && e.exit_code == VMSNAP_EXIT_TARGET, "a region that is not mapped: %d",
                err);
    r.hva = 4096;
    err = region_classify(&r, puppet_target(p), &maps, &e);
    KTEST_CHECK(err < 0 && e.exit_code == VMSNAP_EXIT_TARGET, "nothing there: %d", err);
    mapping_list_free(&maps);
    r.hva = puppet_address(p);
    ktest_end(puppet_pid(p));
    err = region_read(&r, puppet_target(p), 0, 1, page, NULL, NULL);
    KTEST_CHECK(err == -ESRCH, "of a process that is gone: %d", err);
    static struct region_look k;
    region_look_begin(&k, &r, puppet_target(p));
    err = region_look_at(&k, 0, 512);
    KTEST_CHECK(err == -ESRCH, "a look at a process that is gone: %d", err);
    return KTEST_PASS;
}

/* Memory that can't be protected is refused by name. */
static int disk_file(const void *arg)
{
    (void)arg;
    struct error e = {0};
    struct target t;
    struct mapping_list maps;
    KTEST_CHECK(target_open(&t, getpid(), &e) == 0, "%s", e.message);
    KTEST_CHECK(target_mappings(&t, &maps, &e) == 0, "%s", e.message);
    const struct mapping *code = mapping_find(&maps, (uintptr_t)disk_file);
    const struct mapping *data = mapping_find(&maps, (uintptr_t)&maps);
    KTEST_CHECK(code && data && code->executable && data->writable, "own mappings not found");
    struct region r = {.name = "text", .hva = code->start, .bytes = PAGE, .max_bytes = PAGE};
    int err = region_classify(&r, &t, &maps, &e);
    if (err == 0) { /* the program lies in a tmpfs, as in the test guest */
        region_close(&r);
        printf("    the program itself is in shared memory: nothing to refuse\n");
    } else {
        KTEST_CHECK(e.exit_code == VMSNAP_EXIT_HAZARD, "exit code %d: %s", e.exit_code, e.message);
        KTEST_CHECK(r.fd == -1, "its file is left open");
    }
    for (size_t i = 0; i < maps.count; i++) {
        if (strcmp(maps.items[i].name, "[vvar]") != 0)
            continue;
        r = (struct region){.name = "vvar", .hva = maps.items[i].start, .bytes = PAGE};
        err = region_classify(&r, &t, &maps, &e);
        KTEST_CHECK(err < 0 && e.exit_code == VMSNAP_EXIT_HAZARD, "device memory: %d", err);
    }
    mapping_list_free(&maps);
    target_close(&t);
    return KTEST_PASS;
}

int main(int argc, char **argv)
{
    static const enum puppet_memory anon = PUPPET_ANON, memfd = PUPPET_MEMFD;
    struct ktest_case cases[16];
    size_t n = 0;
    for (unsigned i = 0; i < sizeof(layouts) / sizeof(layouts[0]); i++)
        cases[n++] =
            (struct ktest_case){puppet_memory_names[layouts[i].memory], run_layout, &layouts[i]};
    cases[n++] = (struct ktest_case){"copies of a private file", private_copies, NULL};
    cases[n++] = (struct ktest_case){"poison, private anonymous", poison, &anon};
    cases[n++] = (struct ktest_case){"poison, memfd", poison, &memfd};
    cases[n++] = (struct ktest_case){"not readable", not_readable, NULL};
    cases[n++] = (struct ktest_case){"not there", not_there, NULL};
    cases[n++] = (struct ktest_case){"disk file, device memory", disk_file, NULL};
    return ktest_main(argc, argv, cases, n);
}
