/*
 * selfcheck - fills memory with pages whose content follows from (page number, generation), gives
 * random pages a new generation at a set rate, and checks: every page before it is rewritten, and
 * all pages in rounds. A page that is wrong, stale or lost is an ERROR line and is counted.
 *
 *   selfcheck [mib=64] [rate=2000] [check=0] [interval=100] [owner=0] [phys=0]
 *
 * rate: pages rewritten per second; 0: as many as it can. check: pages checked per second in the
 * rounds; 0: one round per second. phys: use the physical memory from there on (through /dev/mem;
 * the kernel must not use it), 0: memory of its own. Every `interval` ms it prints:
 *
 *   SELFCHECK 0 up=12.345 rounds=3 next=4711 pages=16384 checked=51234 rewritten=2468 errors=0
 *       gap_ms=1.250
 *
 * all in one line; next is the page that the round has come to.
 * gap_ms is the longest time between two turns of its loop since the last line, by the guest's own
 * clock. That clock stands still while the VM is stopped; what it sees are waits for pages.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "pattern.h"
#include "report.h"

#define BATCH 4u /* pages between two looks at the clock */
#define MAX_ERROR_LINES 20u

struct selfcheck {
    uint64_t *words;
    uint32_t *generation;
    uint64_t n_pages;
    uint64_t run;
    uint32_t owner;
    uint64_t next; /* of the round */
    uint64_t rounds, checked, rewritten, errors;
    uint64_t random;
};

static struct page_header header_of(const struct selfcheck *s, uint64_t page)
{
    return (struct page_header){
        .magic = {PATTERN_MAGIC0, PATTERN_MAGIC1},
        .kind = PAGE_SELFCHECK,
        .owner = s->owner,
        .page = page,
        .total = s->n_pages,
        .run = s->run,
        .value = s->generation[page],
    };
}

static void say_wrong(const struct selfcheck *s, uint64_t page, size_t word)
{
    const uint64_t *words = s->words + page * PATTERN_WORDS;
    struct page_header wanted = header_of(s, page), there;
    memcpy(&there, words, sizeof(there));
    report_line("ERROR selfcheck %u page=%llu of %llu generation=%llu word=%zu there=%016llx "
                "there_page=%lld there_generation=%lld",
                s->owner, (unsigned long long)page, (unsigned long long)s->n_pages,
                (unsigned long long)wanted.value, word, (unsigned long long)words[word],
                there.magic[0] == PATTERN_MAGIC0 ? (long long)there.page : -1,
                there.magic[0] == PATTERN_MAGIC0 ? (long long)there.value : -1);
}

/* True when the page is as it was left. A wrong one is put right, to be counted once. */
static bool check_page(struct selfcheck *s, uint64_t page)
{
    uint64_t *words = s->words + page * PATTERN_WORDS;
    struct page_header header = header_of(s, page);
    size_t word = pattern_check(words, &header);
    s->checked++;
    if (word == PATTERN_WORDS)
        return true;
    if (s->errors++ < MAX_ERROR_LINES)
        say_wrong(s, page, word);
    pattern_fill(words, header);
    return false;
}

static void rewrite_one(struct selfcheck *s)
{
    uint64_t page = report_random(&s->random) % s->n_pages;
    check_page(s, page);
    s->generation[page]++;
    pattern_fill(s->words + page * PATTERN_WORDS, header_of(s, page));
    s->rewritten++;
}

static void check_next(struct selfcheck *s)
{
    check_page(s, s->next);
    if (++s->next == s->n_pages) {
        s->next = 0;
        s->rounds++;
    }
}

static void fill_all(struct selfcheck *s)
{
    for (uint64_t page = 0; page < s->n_pages; page++) {
        s->generation[page] = (uint32_t)(report_random(&s->random) % 16);
        pattern_fill(s->words + page * PATTERN_WORDS, header_of(s, page));
    }
}

/* How many units are due after `elapsed_ns` at `per_second`, less what is done; at most BATCH. */
static uint64_t due(uint64_t per_second, uint64_t elapsed_ns, uint64_t done)
{
    uint64_t wanted = (uint64_t)((double)elapsed_ns * 1e-9 * (double)per_second);
    if (wanted <= done)
        return 0;
    return wanted - done < BATCH ? wanted - done : BATCH;
}

static void print_counters(const struct selfcheck *s, uint64_t now_ns, uint64_t gap_ns)
{
    report_line("SELFCHECK %u up=%.3f rounds=%llu next=%llu pages=%llu checked=%llu rewritten=%llu "
                "errors=%llu gap_ms=%.3f",
                s->owner, (double)now_ns * 1e-9, (unsigned long long)s->rounds,
                (unsigned long long)s->next, (unsigned long long)s->n_pages,
                (unsigned long long)s->checked, (unsigned long long)s->rewritten,
                (unsigned long long)s->errors, (double)gap_ns * 1e-6);
}

static void work(struct selfcheck *s, uint64_t rate, uint64_t check, uint64_t interval_ns)
{
    uint64_t start = report_now_ns(), last = start, print = start, gap = 0;
    uint64_t round_done = 0, rewrites_done = 0;
    for (;;) {
        uint64_t now = report_now_ns();
        gap = now - last > gap ? now - last : gap;
        last = now;
        if (now >= print) {
            print_counters(s, now, gap);
            gap = 0;
            print = now + interval_ns;
        }
        uint64_t rewrites = rate ? due(rate, now - start, rewrites_done) : BATCH;
        uint64_t checks = due(check, now - start, round_done);
        for (uint64_t i = 0; i < rewrites; i++, rewrites_done++)
            rewrite_one(s);
        for (uint64_t i = 0; i < checks; i++, round_done++)
            check_next(s);
        if (rewrites == 0 && checks == 0)
            nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
}

static void *allocate(size_t bytes, uint64_t phys)
{
    int fd = phys ? open("/dev/mem", O_RDWR | O_CLOEXEC) : -1;
    void *p = phys ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)phys)
                   : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        report_die("selfcheck", "mmap");
    return p;
}

int main(int argc, char **argv)
{
    struct selfcheck s = {.run = report_seed(), .random = report_seed()};
    s.n_pages = report_option(argc, argv, "mib", 64) * 256;
    s.owner = (uint32_t)report_option(argc, argv, "owner", 0);
    uint64_t rate = report_option(argc, argv, "rate", 2000);
    uint64_t check = report_option(argc, argv, "check", 0);
    uint64_t interval_ns = report_option(argc, argv, "interval", 100) * 1000000;
    if (s.n_pages == 0) {
        errno = EINVAL;
        report_die("selfcheck", "mib");
    }
    s.words = allocate(s.n_pages * PATTERN_PAGE_BYTES, report_option(argc, argv, "phys", 0));
    s.generation = allocate(s.n_pages * sizeof(*s.generation), 0);
    fill_all(&s);
    report_line("SELFCHECK %u ready mib=%llu rate=%llu", s.owner,
                (unsigned long long)(s.n_pages / 256), (unsigned long long)rate);
    work(&s, rate, check ? check : s.n_pages, interval_ns);
}
