#include "tests/engine/stepping_process.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/uffd.h"

#define PAGE 4096u
#define GROWTH 8u
#define POISONED_PAGES 3u
#define UNTOUCHED_PAGES 512u /* with poison: not read either, so that a shared hole stays one */

/* Seldom, and for long: a thread that naps thousands of times a second beside one that never rests
 * takes the CPU from all other sessions on a busy host (measured on Linux 6.18, with autogroups:
 * the scheduler weighs the session anew at each nap; hogs in other sessions, the kernel's workers
 * and the snapshot's own threads got none for up to 80 s). */
#define READS_AT_ONCE 8192u
#define READER_NAP_US 6400u

static struct stepping_board *board;

/* Pages below this are written in step s. */
static uint64_t limit_of(const struct stepping_block *b, uint64_t step)
{
    uint64_t limit = b->n_pages / 2 + step * GROWTH;
    uint64_t most = b->n_pages - b->n_pages / 8; /* the last eighth stays a hole for good */
    return step == 0 ? 0 : limit < most ? limit : most;
}

#define SPREAD 0x9e3779b1u /* odd: times this, modulo a power of two, is a permutation */

/* The page that is written as the i-th, and the other way about. */
static uint64_t nth_page(const struct stepping_block *b, uint64_t i)
{
    return b->random ? i * SPREAD % b->n_pages : i;
}

static uint64_t turn_of(const struct stepping_block *b, uint64_t p)
{
    uint64_t inverse = SPREAD; /* right in 3 bits; each round doubles them */
    for (int i = 0; i < 5; i++)
        inverse *= 2 - SPREAD * inverse;
    return b->random ? p * inverse % b->n_pages : p;
}

static bool has_scrap(const struct stepping_block *b)
{
    return b->hva && b->kind != STEPPING_HUGETLB && b->n_pages >= 16 * STEPPING_SCRAP_PAGES;
}

uint64_t stepping_expected(const struct stepping_block *b, uint64_t p)
{
    if (p >= b->n_pages - STEPPING_SCRAP_PAGES && has_scrap(b))
        return b->scrap[p >= b->n_pages - STEPPING_SCRAP_PAGES / 2];
    if (turn_of(b, p) < b->next && p < limit_of(b, b->step))
        return b->step;
    return p < limit_of(b, b->step - 1) ? b->step - 1 : 0;
}

static const size_t places[3] = {0, PAGE / 2 - 8, PAGE - 8};

bool stepping_page_is(const void *page, uint64_t value)
{
    for (int i = 0; i < 3; i++) {
        uint64_t there;
        memcpy(&there, (const char *)page + places[i], sizeof(there));
        if (there != value)
            return false;
    }
    return true;
}

static void *map_block(const struct stepping_block *b)
{
    size_t bytes = b->n_pages * PAGE, align = 2u << 20;
    int prot = PROT_READ | PROT_WRITE;
    if (b->kind == STEPPING_HUGETLB)
        return mmap(NULL, bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    char *room = mmap(NULL, bytes + align, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED)
        return MAP_FAILED;
    void *at = (void *)(((uintptr_t)room + align - 1) & ~(uintptr_t)(align - 1));
    if (b->kind == STEPPING_MEMFD || b->kind == STEPPING_PRIVATE_FILE) {
        int fd = memfd_create("stepping", 0);
        if (fd < 0 || ftruncate(fd, (off_t)bytes))
            return MAP_FAILED;
        return mmap(at, bytes, prot,
                    (b->kind == STEPPING_MEMFD ? MAP_SHARED : MAP_PRIVATE) | MAP_FIXED, fd, 0);
    }
    madvise(at, bytes, b->kind == STEPPING_ANON_HUGE ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    return at;
}

static void write_page(char *page, uint64_t value)
{
    for (int i = 0; i < 3; i++)
        __atomic_store_n((uint64_t *)(void *)(page + places[i]), value, __ATOMIC_RELAXED);
}

static void park(struct stepping_block *b, uint64_t step, uint64_t next)
{
    b->step = step;
    b->next = next;
    atomic_store(&b->parked, true);
    while (atomic_load(&board->pause))
        usleep(100);
    atomic_store(&b->parked, false);
}

static void *writer(void *opaque)
{
    struct stepping_block *b = opaque;
    char *memory = (char *)(uintptr_t)b->hva;
    for (uint64_t step = 1;; step++) {
        uint64_t limit = limit_of(b, step);
        for (uint64_t i = 0; i < (b->random ? b->n_pages : limit); i++) {
            uint64_t p = nth_page(b, i);
            if (p >= limit)
                continue;
            if (atomic_load_explicit(&board->pause, memory_order_relaxed))
                park(b, step, i);
            write_page(memory + p * PAGE, step);
            atomic_fetch_add_explicit(&board->written, 1, memory_order_relaxed);
        }
    }
    return NULL;
}

static bool page_is_whole(const char *page)
{
    uint64_t first = __atomic_load_n((const uint64_t *)(const void *)page, __ATOMIC_RELAXED);
    uint64_t last =
        __atomic_load_n((const uint64_t *)(const void *)(page + places[2]), __ATOMIC_RELAXED);
    return last + 1 >= first;
}

/* Reads everywhere, the holes above all. */
static void *reader(void *opaque)
{
    (void)opaque;
    for (uint64_t x = 88172645463325252ull;;) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        struct stepping_block *b = &board->blocks[x % board->n_blocks];
        uint64_t p = (x >> 8) % b->n_pages;
        if (!b->hva || (atomic_load(&board->poison) && b == board->blocks &&
                        p >= b->n_pages - UNTOUCHED_PAGES))
            continue;
        char *page = (char *)(uintptr_t)b->hva + p * PAGE;
        /* Written front to back: the end is behind the begin by one step at most, and only while
         * the page is being written; a page that was a hole goes from 0 to any step. */
        for (int tries = 0; !page_is_whole(page) && !atomic_load(&board->discarded); tries++) {
            usleep(10000);
            if (tries == 100) {
                atomic_fetch_add(&board->wrong, 1);
                break;
            }
        }
        if (x % READS_AT_ONCE == 0)
            usleep(READER_NAP_US);
    }
    return NULL;
}

/* Poisons the last pages of block 0, a hole so far, with a userfaultfd that is closed after. */
static void poison_tail(const struct stepping_block *b)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    uint64_t at = b->hva + (b->n_pages - POISONED_PAGES) * PAGE;
    uint64_t done = 0;
    if (fd < 0 || uffd_enable(fd, UFFD_FEATURE_POISON) ||
        uffd_register(fd, b->hva, b->n_pages * PAGE, UFFDIO_REGISTER_MODE_MISSING, NULL) ||
        uffd_poison(fd, at, (uint64_t)POISONED_PAGES * PAGE, &done))
        atomic_store(&board->poison, false);
    close(fd);
}

static void fill_scrap(struct stepping_block *b, unsigned half, uint64_t value)
{
    char *at = (char *)(uintptr_t)b->hva +
               (b->n_pages - STEPPING_SCRAP_PAGES + half * STEPPING_SCRAP_PAGES / 2) * PAGE;
    for (unsigned i = 0; i < STEPPING_SCRAP_PAGES / 2; i++)
        write_page(at + i * PAGE, value);
    b->scrap[half] = value;
}

static void discard_scrap(struct stepping_block *b)
{
    void *at = (void *)(uintptr_t)(b->hva + (b->n_pages - STEPPING_SCRAP_PAGES) * PAGE);
    madvise(at, STEPPING_SCRAP_PAGES * PAGE,
            b->kind == STEPPING_MEMFD ? MADV_REMOVE : MADV_DONTNEED);
    b->scrap[0] = b->scrap[1] = 0;
}

static void do_scrap(enum stepping_scrap what)
{
    static uint64_t value = 1ull << 40;
    value++;
    for (uint32_t i = 0; i < board->n_blocks; i++) {
        struct stepping_block *b = &board->blocks[i];
        if (!has_scrap(b))
            continue;
        if (what == STEPPING_SCRAP_DISCARD)
            discard_scrap(b);
        else
            fill_scrap(b, 1, value);
        fill_scrap(b, 0, value);
    }
    atomic_store(&board->scrap, 0);
}

/* Fills what the first step will write. */
static void make_noise(const struct stepping_block *b)
{
    uint64_t x = b->hva ^ 88172645463325252ull, *at = (uint64_t *)(uintptr_t)b->hva;
    for (uint64_t p = 0; p < limit_of(b, 1); p++)
        for (unsigned i = 0; i < PAGE / 8; i++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            at[p * (PAGE / 8) + i] = x;
        }
    for (uint64_t p = 0; p < limit_of(b, 1); p++)
        write_page((char *)at + p * PAGE, 0);
}

/* Where it was read first, Linux 6.1 gives small pages at the first write. */
static void touch_huge(const struct stepping_block *b)
{
    char *memory = (char *)(uintptr_t)b->hva;
    for (uint64_t p = 0; b->kind == STEPPING_ANON_HUGE && p < limit_of(b, 1); p++)
        write_page(memory + p * PAGE, 0);
}

static _Noreturn void be_guest(void)
{
    pthread_t t;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (uint32_t i = 0; i < board->n_blocks; i++) {
        void *at = map_block(&board->blocks[i]);
        board->blocks[i].hva = at == MAP_FAILED ? 0 : (uintptr_t)at;
        if (at != MAP_FAILED)
            touch_huge(&board->blocks[i]);
        if (at != MAP_FAILED && atomic_load(&board->noise))
            make_noise(&board->blocks[i]);
    }
    if (atomic_load(&board->poison))
        poison_tail(&board->blocks[0]);
    for (uint32_t i = 0; i < board->n_blocks; i++)
        if (board->blocks[i].hva && pthread_create(&t, NULL, writer, &board->blocks[i]))
            _exit(1);
    if (pthread_create(&t, NULL, reader, NULL))
        _exit(1);
    atomic_store(&board->ready, true);
    for (;;) {
        if (atomic_exchange(&board->discard, false)) {
            atomic_store(&board->discarded, true);
            uint64_t from = atomic_load(&board->discard_from);
            madvise((void *)(uintptr_t)(board->blocks[0].hva + from * PAGE),
                    (board->blocks[0].n_pages - from) * PAGE, MADV_DONTNEED);
        }
        if (atomic_load(&board->scrap))
            do_scrap((enum stepping_scrap)atomic_load(&board->scrap));
        usleep(500);
    }
}

struct stepping_board *stepping_board_new(void)
{
    void *at = mmap(NULL, sizeof(struct stepping_board), PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

pid_t stepping_start(struct stepping_board *b)
{
    board = b;
    pid_t pid = fork();
    if (pid == 0)
        be_guest();
    while (pid > 0 && !atomic_load(&b->ready))
        usleep(1000);
    while (pid > 0 && atomic_load(&b->written) < 2000)
        usleep(1000);
    return pid;
}

void stepping_stop(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

void stepping_scrap(struct stepping_board *b, enum stepping_scrap what)
{
    atomic_store(&b->scrap, (int)what);
    while (atomic_load(&b->scrap))
        usleep(100);
}

bool stepping_pause(struct stepping_board *b)
{
    atomic_store(&b->pause, true);
    for (uint32_t i = 0; i < b->n_blocks; i++)
        for (int tries = 0; b->blocks[i].hva && !atomic_load(&b->blocks[i].parked); tries++) {
            if (tries == 10000)
                return false;
            usleep(100);
        }
    return true;
}

void stepping_resume(struct stepping_board *b)
{
    atomic_store(&b->pause, false);
}
