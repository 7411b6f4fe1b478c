/*
 * Memory that is not the VMM's alone is refused by name, and left as it is: another process maps
 * it, or its file held data before. What is only allocated is not refused.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/kernel/ktest.h"
#include "tests/serve/serve_kit.h"

#define PAGES 2048u

struct shape {
    enum kit_before before;
    bool named;       /* the file has a name */
    bool zeros;       /* and holds zeros only */
    bool with_fellow; /* another process maps it, for reading */
    const char *why;  /* it is refused so; NULL: it is not */
};

struct fellow_board {
    pid_t pid;
    uint64_t hva;
    atomic_bool ready;
};

/* Maps a page of the process's memory. */
static int map_it_too(void *opaque)
{
    struct fellow_board *board = opaque;
    char path[96];
    snprintf(path, sizeof(path), "/proc/%d/map_files/%llx-%llx", (int)board->pid,
             (unsigned long long)board->hva,
             (unsigned long long)board->hva + PAGES * IMAGE_PAGE_BYTES);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || mmap(NULL, IMAGE_PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED)
        return 1;
    atomic_store(&board->ready, true);
    for (;;)
        pause();
}

static int start_fellow(const struct kit *k)
{
    struct fellow_board *board = ktest_shared(sizeof(*board));
    board->pid = k->pid;
    board->hva = k->blocks.items[0].region.hva;
    ktest_spawn(map_it_too, board);
    KTEST_CHECK(KTEST_WAIT(atomic_load(&board->ready)), "no fellow process");
    return KTEST_PASS;
}

static int attach(struct kit *k, const struct shape *shape)
{
    static unsigned char states[PAGES];
    struct error e = {0};
    page_state_map(&k->state, states, image_get_trailer(k->img)->n_clusters);
    struct attach a = {.target = &k->target,
                       .img = k->img,
                       .blocks = &k->blocks,
                       .state = &k->state,
                       .timeout_ms = 5000};
    int rc = attach_memory(&a, &e);
    printf("    %s\n", rc ? e.message : "attached");
    KTEST_CHECK((rc != 0) == (shape->why != NULL), "refused: %d", rc != 0);
    if (!shape->why)
        return KTEST_PASS;
    KTEST_CHECK(e.exit_code == VMSNAP_EXIT_HAZARD, "exit code %d", (int)e.exit_code);
    KTEST_CHECK(strncmp(e.message, "mem-path: ", 10) == 0 && strstr(e.message, shape->why),
                "the reason");
    unsigned char page[IMAGE_PAGE_BYTES], before[IMAGE_PAGE_BYTES];
    memset(before, shape->before == KIT_FRESH ? 0 : 0xee, sizeof(before));
    KTEST_CHECK(pread(k->blocks.items[0].region.fd, page, sizeof(page), 0) == sizeof(page) &&
                    memcmp(page, before, sizeof(page)) == 0,
                "its content has changed");
    return KTEST_PASS;
}

static int run_shape(const void *arg)
{
    const struct shape *shape = arg;
    struct kit_board *board = ktest_shared(sizeof(*board));
    board->n_threads = 1;
    board->n_blocks = 1;
    board->before = shape->before;
    board->blocks[0] = (struct kit_block){.kind = KIT_MEMFD, .n_pages = PAGES};
    if (shape->named)
        snprintf(board->path, sizeof(board->path), "/dev/shm/vmsnap-serve-%d", (int)getpid());
    struct kit k;
    bool opened = kit_open(&k, board, false);
    int rc = opened ? KTEST_PASS : KTEST_FAIL;
    if (shape->zeros && fallocate(k.blocks.items[0].region.fd, 0, 0, PAGES * IMAGE_PAGE_BYTES))
        rc = KTEST_FAIL;
    if (shape->with_fellow && rc == KTEST_PASS)
        rc = start_fellow(&k);
    if (rc == KTEST_PASS)
        rc = attach(&k, shape);
    if (shape->named)
        unlink(board->path);
    kit_close(&k);
    return rc;
}

static const struct shape mapped = {.with_fellow = true, .why = "maps memory block 'block0'"},
                          data = {.before = KIT_FILLED, .named = true, .why = "holds data"},
                          unmapped = {.before = KIT_UNMAPPED, .named = true, .why = "holds data"},
                          nameless = {.before = KIT_FILLED},
                          allocated = {.named = true, .zeros = true};

int main(int argc, char **argv)
{
    static const struct ktest_case cases[] = {
        {"mapped-by-another", run_shape, &mapped},
        {"file-with-data", run_shape, &data},
        {"file-with-data-unmapped", run_shape, &unmapped},
        {"memory-without-a-name", run_shape, &nameless},
        {"file-allocated-only", run_shape, &allocated},
    };
    return kit_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
