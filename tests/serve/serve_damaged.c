/*
 * A cluster that can't be read is never answered: who touches it waits, all others go on, the error
 * names the place, and the memory stays registered for good. Or, where that is asked for, it is
 * poisoned: its pages, no others, and not those that were given back.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "common/kernel.h"
#include "tests/kernel/ktest.h"
#include "tests/serve/serve_kit.h"

#define DAMAGED_PAGE 505u /* in cluster 126, which is not zeros */

static uint64_t cpu_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Flips a byte in the cluster's record, in the file. */
static bool damage(const struct kit *k, uint64_t cluster)
{
    uint64_t entry = image_index_entry(k->img, cluster);
    off_t at = (off_t)(IMAGE_INDEX_OFFSET(entry) + sizeof(struct image_record) + 100);
    int fd = open(k->image_path, O_RDWR | O_CLOEXEC);
    unsigned char c = 0;
    bool ok = fd >= 0 && pread(fd, &c, 1, at) == 1;
    c ^= 1;
    ok = ok && pwrite(fd, &c, 1, at) == 1;
    close(fd);
    return ok;
}

static int open_damaged(struct kit *k, struct kit_board *board, enum kit_memory kind)
{
    board->n_blocks = 1;
    board->blocks[0] = (struct kit_block){.kind = kind, .n_pages = 4096};
    KTEST_CHECK(kit_open(k, board, false), "no process or image");
    KTEST_CHECK(damage(k, k->blocks.items[0].first_cluster + DAMAGED_PAGE / IMAGE_CLUSTER_PAGES),
                "can't damage the image");
    return KTEST_PASS;
}

static int check_error(struct kit *k)
{
    struct error e = {0};
    KTEST_CHECK(KTEST_WAIT(server_take_error(k->server, &e)), "no error");
    printf("    %s\n", e.message);
    KTEST_CHECK(e.exit_code == VMSNAP_EXIT_IMAGE, "exit code %d", e.exit_code);
    KTEST_CHECK(strstr(e.message, "block0") && strstr(e.message, "0x1f8000"), "%s", e.message);
    KTEST_CHECK(!server_take_error(k->server, &e), "told twice: %s", e.message);
    return KTEST_PASS;
}

static int on_demand(const void *arg)
{
    (void)arg;
    struct kit_board *board = ktest_shared(sizeof(*board));
    board->n_threads = 1;
    board->work = KIT_TOUCH;
    board->touch_page = DAMAGED_PAGE;
    struct kit k;
    if (open_damaged(&k, board, KIT_ANON))
        return KTEST_FAIL;
    KTEST_CHECK(kit_serve(&k, false, false), "no server");
    kit_go(&k);
    if (check_error(&k))
        return KTEST_FAIL;
    KTEST_CHECK(!kit_wait_finished(&k, 200), "it was answered");
    KTEST_CHECK(board->wrong == 0 && board->pages_read == 0, "it was answered");
    kit_close(&k);
    return KTEST_PASS;
}

static int by_the_fill(const void *arg)
{
    (void)arg;
    struct kit_board *board = ktest_shared(sizeof(*board));
    board->n_threads = 1;
    struct kit k;
    if (open_damaged(&k, board, KIT_ANON))
        return KTEST_FAIL;
    KTEST_CHECK(kit_serve(&k, true, true), "no server");
    KTEST_CHECK(kit_wait_stage(&k, SERVER_INCOMPLETE), "stage %d", (int)server_stage(k.server));
    if (check_error(&k))
        return KTEST_FAIL;
    struct server_stats s;
    server_get_stats(k.server, &s);
    KTEST_CHECK(s.counts.clusters_damaged == 1, "%llu damaged",
                (unsigned long long)s.counts.clusters_damaged);
    server_release(k.server); /* must not be heeded */
    kit_go(&k);
    KTEST_CHECK(!kit_wait_finished(&k, 300), "all pages were read, the damaged one too");
    KTEST_CHECK(board->wrong == 0, "%llu wrong pages", (unsigned long long)board->wrong);
    KTEST_CHECK(server_stage(k.server) == SERVER_INCOMPLETE, "stage %d",
                (int)server_stage(k.server));
    kit_close(&k);
    return KTEST_PASS;
}

/* What a server before this one found damaged is in no count of this one, and is not in either. */
static int known_before(const void *arg)
{
    const enum cluster_state *left = arg;
    struct kit_board *board = ktest_shared(sizeof(*board));
    board->n_threads = 1;
    struct kit k;
    if (open_damaged(&k, board, KIT_ANON))
        return KTEST_FAIL;
    k.left_state = *left;
    k.left_cluster = k.blocks.items[0].first_cluster + DAMAGED_PAGE / IMAGE_CLUSTER_PAGES;
    KTEST_CHECK(kit_serve(&k, true, true), "no server");
    KTEST_CHECK(kit_wait_stage(&k, SERVER_INCOMPLETE), "stage %d", (int)server_stage(k.server));
    server_release(k.server); /* must not be heeded */
    kit_go(&k);
    KTEST_CHECK(!kit_wait_finished(&k, 300), "all pages were read, the damaged one too");
    KTEST_CHECK(board->wrong == 0, "%llu wrong pages", (unsigned long long)board->wrong);
    kit_close(&k);
    return KTEST_PASS;
}

/* Content that the guest has given back, all of it, is not missed: no damage, and all comes in. */
static int given_back_whole(const void *arg)
{
    (void)arg;
    struct kit_board *board = ktest_shared(sizeof(*board));
    board->n_threads = 1;
    board->work = KIT_GIVE_UP;
    struct kit k;
    if (open_damaged(&k, board, KIT_MEMFD))
        return KTEST_FAIL;
    k.fills_late = true;
    KTEST_CHECK(kit_serve(&k, false, true), "no server");
    KTEST_CHECK(kit_run(&k) && board->wrong == 0, "%llu wrong pages",
                (unsigned long long)board->wrong);
    server_begin_fill(k.server);
    KTEST_CHECK(kit_wait_stage(&k, SERVER_FILLED), "stage %d", (int)server_stage(k.server));
    struct server_stats s;
    server_get_stats(k.server, &s);
    KTEST_CHECK(s.counts.clusters_damaged == 0, "damage was found in what was given back");
    kit_close(&k);
    return KTEST_PASS;
}

/* ---- poison ---- */

struct poison_shape {
    enum kit_memory kind;
    bool fill;       /* the fill finds it, else a fault */
    bool given_back; /* one of its pages is discarded before */
};

static int check_poisoned(struct kit *k, uint64_t n_wanted, uint64_t n_bus)
{
    const struct kit_board *board = k->board;
    struct server_stats s;
    KTEST_CHECK(board->wrong == 0, "%llu wrong pages", (unsigned long long)board->wrong);
    KTEST_CHECK(board->bus_errors == n_bus, "%llu times SIGBUS",
                (unsigned long long)board->bus_errors);
    KTEST_CHECK(board->pages_read == board->blocks[0].n_pages - n_bus, "%llu pages read",
                (unsigned long long)board->pages_read);
    server_get_stats(k->server, &s);
    KTEST_CHECK(s.counts.clusters_damaged == 1 && s.counts.pages_poisoned == n_wanted,
                "%llu damaged, %llu pages poisoned", (unsigned long long)s.counts.clusters_damaged,
                (unsigned long long)s.counts.pages_poisoned);
    return check_error(k);
}

static bool has_huge_pages(void)
{
    void *p = mmap(NULL, 4096 * IMAGE_PAGE_BYTES, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    if (p != MAP_FAILED)
        munmap(p, 4096 * IMAGE_PAGE_BYTES);
    return p != MAP_FAILED;
}

/* The damage lies in the middle of a huge page: who touches that waits, at no cost of CPU, and the
 * other huge pages come. */
static int huge_on_demand(const void *arg)
{
    (void)arg;
    KTEST_SKIP_IF(!has_huge_pages(), "no huge pages here");
    struct kit_board *board = ktest_shared(sizeof(*board));
    board->n_threads = 8;
    struct kit k;
    if (open_damaged(&k, board, KIT_HUGETLB))
        return KTEST_FAIL;
    KTEST_CHECK(kit_serve(&k, false, false), "no server");
    kit_go(&k);
    if (check_error(&k))
        return KTEST_FAIL;
    KTEST_CHECK(!kit_wait_finished(&k, 500), "it was answered");
    uint64_t began_ns = cpu_now_ns();
    KTEST_CHECK(!kit_wait_finished(&k, 500), "it was answered");
    uint64_t cpu_ns = cpu_now_ns() - began_ns;
    KTEST_CHECK(cpu_ns < 100000000, "%llu ms of CPU while all wait",
                (unsigned long long)cpu_ns / 1000000);
    KTEST_CHECK(board->wrong == 0 && board->pages_read > 0, "%llu pages read, %llu wrong",
                (unsigned long long)board->pages_read, (unsigned long long)board->wrong);
    kit_close(&k);
    return KTEST_PASS;
}

/* Every page is read, of which exactly those of the damaged unit give a memory error. By the fill
 * it comes to its end, and what is poisoned stays so after the registration is gone. */
static int poisoned(const void *arg)
{
    const struct poison_shape *shape = arg;
    KTEST_SKIP_IF(!kernel_probe()->poison, "this kernel can't poison");
    KTEST_SKIP_IF(shape->kind == KIT_HUGETLB && !has_huge_pages(), "no huge pages here");
    struct kit_board *board = ktest_shared(sizeof(*board));
    uint64_t unit_pages = shape->kind == KIT_HUGETLB ? 512 : IMAGE_CLUSTER_PAGES;
    board->n_threads = 1;
    board->damaged_first = DAMAGED_PAGE / unit_pages * unit_pages;
    board->n_damaged = unit_pages;
    board->given_back = shape->given_back ? DAMAGED_PAGE : 0;
    struct kit k;
    int rc = open_damaged(&k, board, shape->kind);
    if (rc)
        return rc;
    k.poison_damage = true;
    KTEST_CHECK(kit_serve(&k, false, shape->fill), "no server");
    if (shape->fill) {
        KTEST_CHECK(kit_wait_stage(&k, SERVER_FILLED), "stage %d", (int)server_stage(k.server));
        server_release(k.server);
        KTEST_CHECK(kit_wait_stage(&k, SERVER_RELEASED), "stage %d", (int)server_stage(k.server));
    }
    KTEST_CHECK(kit_run(&k), "the process hangs");
    uint64_t n = unit_pages - shape->given_back;
    rc = check_poisoned(&k, n, n);
    kit_close(&k);
    return rc;
}

static const struct poison_shape anon_fault = {.kind = KIT_ANON},
                                 anon_given_back = {.kind = KIT_ANON, .given_back = true},
                                 anon_fill = {.kind = KIT_ANON, .fill = true},
                                 shared_fault = {.kind = KIT_MEMFD},
                                 shared_fill = {.kind = KIT_MEMFD, .fill = true},
                                 private_file = {.kind = KIT_PRIVATE_FILE, .fill = true},
                                 huge_fault = {.kind = KIT_HUGETLB},
                                 huge_fill = {.kind = KIT_HUGETLB, .fill = true};

int main(int argc, char **argv)
{
    static const enum cluster_state damaged = CLUSTER_DAMAGED, half_done = CLUSTER_WRITING;
    static const struct ktest_case cases[] = {
        {"on-demand", on_demand, NULL},
        {"by-the-fill", by_the_fill, NULL},
        {"damaged-before", known_before, &damaged},
        {"half-done-before", known_before, &half_done},
        {"given-back-whole", given_back_whole, NULL},
        {"huge-on-demand", huge_on_demand, NULL},
        {"poison-anon-on-demand", poisoned, &anon_fault},
        {"poison-anon-given-back", poisoned, &anon_given_back},
        {"poison-anon-by-the-fill", poisoned, &anon_fill},
        {"poison-shared-on-demand", poisoned, &shared_fault},
        {"poison-shared-by-the-fill", poisoned, &shared_fill},
        {"poison-private-file", poisoned, &private_file},
        {"poison-huge-on-demand", poisoned, &huge_fault},
        {"poison-huge-by-the-fill", poisoned, &huge_fill},
    };
    return kit_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
