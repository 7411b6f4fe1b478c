/* The process that is restored. Its main thread only sleeps (so that calls can be injected into
 * it); its workers do what the board says. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/thread.h"
#include "tests/serve/serve_process.h"

#ifndef MFD_HUGETLB
#define MFD_HUGETLB 4U
#endif

#define PAGE 4096u
#define HUGE (2u << 20)

static struct kit_board *board;

static uint64_t next_random(uint64_t *state) /* splitmix64 */
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* ---- memory ---- */

static void *map_file(uint64_t bytes, unsigned memfd_flags, int map_flags)
{
    int fd = board->path[0] ? open(board->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)
                            : memfd_create("serve-kit", memfd_flags);
    if (fd < 0 || ftruncate(fd, (off_t)bytes))
        return MAP_FAILED;
    return mmap(NULL, bytes, PROT_READ | PROT_WRITE, map_flags, fd,
                0); /* fd stays open: as QEMU's */
}

static void *map_kind(enum kit_memory kind, uint64_t bytes)
{
    int anon = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    switch (kind) {
    case KIT_MEMFD:
        return map_file(bytes, 0, MAP_SHARED);
    case KIT_PRIVATE_FILE:
        return map_file(bytes, 0, MAP_PRIVATE);
    case KIT_HUGETLB:
        return map_file(bytes, MFD_HUGETLB, MAP_SHARED);
    default:
        break;
    }
    /* Aligned for huge pages, and apart from its neighbours. */
    char *p = mmap(NULL, bytes + 2 * HUGE, PROT_NONE, anon, -1, 0);
    if (p == MAP_FAILED)
        return p;
    p += HUGE - (uintptr_t)p % HUGE;
    p = mmap(p, bytes, PROT_READ | PROT_WRITE, anon | MAP_FIXED, -1, 0);
    if (p != MAP_FAILED)
        madvise(p, bytes, kind == KIT_ANON_HUGE ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    return p;
}

static void fill_before(char *p, uint64_t bytes)
{
    uint64_t step = board->before == KIT_SPRINKLED ? 7 * PAGE : PAGE;
    if (board->before != KIT_FRESH)
        for (uint64_t at = 0; at < bytes; at += step)
            memset(p + at, 0xee, PAGE);
    if (board->before == KIT_LOCKED)
        mlock(p, bytes);
    if (board->before == KIT_UNMAPPED)
        madvise(p, bytes, MADV_DONTNEED);
}

/* A mapping whose flags differ does not join with its neighbours: every third page is one. */
static void split(char *p, const struct kit_block *b)
{
    for (uint64_t page = 0; b->kind != KIT_HUGETLB && page < b->n_pages; page += 3)
        madvise(p + page * PAGE, PAGE, MADV_DONTDUMP);
}

static void map_blocks(void)
{
    for (uint32_t i = 0; i < board->n_blocks; i++) {
        struct kit_block *b = &board->blocks[i];
        uint64_t bytes = b->n_pages * PAGE;
        char *p = map_kind(b->kind, bytes);
        if (p == MAP_FAILED)
            continue;
        fill_before(p, bytes);
        if (board->split)
            split(p, b);
        atomic_store(&b->hva, (uintptr_t)p);
    }
}

/* ---- reading ---- */

static char *page_at(uint32_t block, uint64_t page)
{
    return (char *)(uintptr_t)atomic_load(&board->blocks[block].hva) + page * PAGE;
}

static __thread sigjmp_buf bus_jump;

static void on_bus_error(int number)
{
    (void)number;
    siglongjmp(bus_jump, 1);
}

static bool is_poisoned(uint32_t block, uint64_t page)
{
    if (block != 0 || (board->given_back && page == board->given_back))
        return false;
    return (board->poisoned && page == KIT_POISONED_PAGE) ||
           page - board->damaged_first < board->n_damaged;
}

/* A poisoned page must give SIGBUS, and nothing else may. */
static void read_poisoned(uint32_t block, uint64_t page)
{
    if (sigsetjmp(bus_jump, 1) == 0) {
        volatile char c = *page_at(block, page);
        (void)c;
        atomic_fetch_add(&board->wrong, 1);
        return;
    }
    atomic_fetch_add(&board->bus_errors, 1);
}

static void check_page(uint32_t block, uint64_t page)
{
    unsigned char expected[PAGE];
    if (is_poisoned(block, page)) {
        read_poisoned(block, page);
        return;
    }
    kit_page(block, page, expected);
    if (board->given_back && block == 0 && page == board->given_back)
        memset(expected, 0, PAGE);
    if (memcmp(page_at(block, page), expected, PAGE) != 0)
        atomic_fetch_add(&board->wrong, 1);
    atomic_fetch_add(&board->pages_read, 1);
}

/* Every page once, in an order of this thread's own; each thread checks all. */
static void read_all(uint64_t *seed)
{
    for (uint32_t i = 0; i < board->n_blocks; i++) {
        uint64_t n = board->blocks[i].n_pages;
        uint64_t start = next_random(seed) % n, step = next_random(seed) % n | 1;
        for (uint64_t a = n, b = step; b;) { /* a step that has no divisor in common with n */
            uint64_t rest = a % b;
            a = b;
            b = rest;
            if (b == 0 && a != 1) {
                step += 2;
                a = n;
                b = step;
            }
        }
        for (uint64_t k = 0; k < n && atomic_load(&board->blocks[i].hva); k++)
            check_page(i, (start + k * step) % n);
    }
}

/* Every page in order, at a pace that anybody can keep up with. */
static void stroll(void)
{
    for (uint32_t i = 0; i < board->n_blocks; i++)
        for (uint64_t page = 0; page < board->blocks[i].n_pages; page++) {
            if (page % 4 == 0)
                usleep(200);
            check_page(i, page);
        }
}

/* ---- discarding ---- */

/* What a page of a thread's own must hold. */
enum holds { HOLDS_IMAGE, HOLDS_ZEROS, HOLDS_MARK, HOLDS_CHANGED };

static void check_holds(uint32_t block, uint64_t page, enum holds holds)
{
    unsigned char expected[PAGE] = {0}, image[PAGE];
    if (holds == HOLDS_IMAGE || holds == HOLDS_CHANGED)
        kit_page(block, page, expected);
    if (holds == HOLDS_MARK)
        expected[7] = 'w';
    if (holds == HOLDS_CHANGED)
        expected[7] ^= 'w';
    atomic_fetch_add(&board->pages_read, 1);
    const char *p = page_at(block, page);
    if (memcmp(p, expected, PAGE) == 0)
        return;
    atomic_fetch_add(&board->wrong, 1);
    kit_page(block, page, image);
    if (memcmp(p, image, PAGE) == 0)
        atomic_fetch_add(&board->came_back, 1);
}

static void discard(uint32_t block, uint64_t page)
{
    bool shared = board->blocks[block].kind == KIT_MEMFD;
    madvise(page_at(block, page), PAGE, shared ? MADV_REMOVE : MADV_DONTNEED);
    atomic_fetch_add(&board->discards, 1);
}

static _Thread_local unsigned char holds[KIT_BLOCKS_MAX][KIT_DISCARD_PAGES];

/*
 * Each thread owns every n-th page, so that neighbours in a cluster have different owners. It
 * reads, discards and writes its own, and knows what must be there.
 */
static void discard_own(unsigned thread, uint64_t *seed)
{
    for (unsigned round = 0; round < board->n_rounds; round++) {
        uint32_t block = (uint32_t)(next_random(seed) % board->n_blocks);
        uint64_t own = next_random(seed) % (KIT_DISCARD_PAGES / board->n_threads);
        uint64_t page = own * board->n_threads + thread;
        unsigned char *now = &holds[block][page];
        switch (next_random(seed) % 4) {
        case 0:
            page_at(block, page)[7] = *now == HOLDS_ZEROS ? 'w' : page_at(block, page)[7];
            *now = *now == HOLDS_ZEROS ? HOLDS_MARK : *now;
            break;
        case 1:
            discard(block, page);
            *now = HOLDS_ZEROS;
            break;
        }
        check_holds(block, page, (enum holds) * now);
    }
}

static void give_up(void)
{
    uint64_t step = board->blocks[0].kind == KIT_HUGETLB ? HUGE / PAGE : 1;
    for (uint64_t page = 0; page < KIT_GIVEN_UP; page += step) {
        madvise(page_at(0, page), step * PAGE, MADV_REMOVE);
        atomic_fetch_add(&board->discards, step);
    }
    for (uint64_t page = 0; page < KIT_GIVEN_UP; page++)
        check_holds(0, page, HOLDS_ZEROS);
}

/* A page of shared memory that was touched, is taken out of the page table, and comes again. */
static void unmap_own(unsigned thread, uint64_t *seed)
{
    for (unsigned round = 0; round < board->n_rounds; round++) {
        uint32_t block = (uint32_t)(next_random(seed) % board->n_blocks);
        uint64_t own = next_random(seed) % (KIT_DISCARD_PAGES / board->n_threads);
        uint64_t page = own * board->n_threads + thread;
        unsigned char *now = &holds[block][page];
        check_holds(block, page, (enum holds) * now);
        if (*now == HOLDS_IMAGE && next_random(seed) % 2) {
            page_at(block, page)[7] ^= 'w';
            *now = HOLDS_CHANGED;
        }
        if (next_random(seed) % 2)
            madvise(page_at(block, page), PAGE, MADV_DONTNEED);
    }
}

/* ---- the process ---- */

/* The clusters are taken in an order that jumps about. */
static void touch_own(unsigned thread)
{
    uint64_t n = board->blocks[0].n_pages / IMAGE_CLUSTER_PAGES; /* a power of two */
    for (uint64_t i = thread; i < n; i += board->n_threads) {
        volatile char c = *page_at(0, i * 2654435761u % n * IMAGE_CLUSTER_PAGES);
        (void)c;
    }
}

static void *run_worker(void *opaque)
{
    unsigned thread = (unsigned)(uintptr_t)opaque;
    sigset_t bus; /* thread_start() blocks all */
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    pthread_sigmask(SIG_UNBLOCK, &bus, NULL);
    while (!atomic_load(&board->go))
        usleep(500);
    uint64_t seed = thread + 1;
    if (board->given_back && thread == 0)
        discard(0, board->given_back);
    if (board->work == KIT_READ)
        read_all(&seed);
    else if (board->work == KIT_STROLL)
        stroll();
    else if (board->work == KIT_TOUCH_ALL)
        touch_own(thread);
    else if (board->work == KIT_DISCARD)
        discard_own(thread, &seed);
    else if (board->work == KIT_GIVE_UP)
        give_up();
    else if (board->work == KIT_UNMAP)
        unmap_own(thread, &seed);
    else
        check_page(0, board->touch_page);
    atomic_fetch_add(&board->finished, 1);
    return NULL;
}

int serve_process(void *opaque)
{
    board = opaque;
    struct sigaction action = {.sa_handler = on_bus_error};
    sigaction(SIGBUS, &action, NULL);
    map_blocks();
    pthread_t thread;
    for (unsigned i = 0; i < board->n_threads; i++)
        if (thread_start(&thread, run_worker, (void *)(uintptr_t)i))
            return 1;
    atomic_store(&board->ready, true);
    while (!atomic_load(&board->quit))
        usleep(1000);
    return 0;
}
