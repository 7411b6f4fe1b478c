/*
 * writer - work for the benchmark, and its measurement from inside the guest: rewrites pages in a
 * pattern as fast as it can or at a rate, and says how long each took.
 *
 *   writer [pattern=random] [mib=64] [hot_mib=64] [rate=0] [interval=50]
 *
 * pattern: random, sequential, hot (random pages of the first hot_mib) or idle (wakes up every
 * millisecond and writes next to nothing). One step rewrites a page: a word in each cache line of
 * it, so the first store of a step is the one that may wait. mib pages are filled first, with
 * content that compresses to about a half. rate: steps per second, 0: all it can. Prints every
 * `interval` ms:
 *
 *   WRITER up=12.345 steps=51234 gap_ms=0.250 step_us=0.9 slow=40:3,41:17
 *
 * gap_ms: the longest time from the end of a step to the end of the next since the last line, by
 * the guest's own clock (which stands still while the VM is stopped), so it includes what kept the
 * program from running at all. step_us: the mean step. slow: how many steps took how long, in
 * buckets of 1/8 of a power of two from 1 us on (bucket b begins at 2^(b/8) us); steps below 1 us
 * are not listed.
 */
#include <errno.h>
#include <stdbool.h>
#include <sys/mman.h>

#include "pattern.h"
#include "report.h"

#define SUB_BITS 3u
#define N_BUCKETS (32u << SUB_BITS)
#define LINE_WORDS 8u

enum kind { KIND_IDLE, KIND_RANDOM, KIND_SEQUENTIAL, KIND_HOT };

struct writer {
    enum kind kind;
    uint64_t *words;
    uint64_t n_pages; /* that it works on */
    uint64_t next;
    uint64_t random;
    uint64_t steps;
    /* Since the last line. */
    uint64_t line_steps, step_ns, gap_ns;
    uint32_t slow[N_BUCKETS];
};

static enum kind kind_of(int argc, char **argv)
{
    static const char *const names[] = {"idle", "random", "sequential", "hot"};
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "pattern=", 8) != 0)
            continue;
        for (size_t k = 0; k < sizeof(names) / sizeof(names[0]); k++) {
            if (strcmp(argv[i] + 8, names[k]) == 0)
                return (enum kind)k;
        }
        errno = EINVAL;
        report_die("writer", argv[i]);
    }
    return KIND_RANDOM;
}

/* Half of each cache line is random, the other half is alike everywhere. */
static void fill_all(uint64_t *words, uint64_t n_pages)
{
    uint64_t random = report_seed();
    for (uint64_t i = 0; i < n_pages * PATTERN_WORDS; i++)
        words[i] = i % LINE_WORDS < LINE_WORDS / 2 ? report_random(&random) : i % LINE_WORDS;
}

static void write_page(struct writer *w, uint64_t page)
{
    volatile uint64_t *words = w->words + page * PATTERN_WORDS;
    for (size_t i = 0; i < PATTERN_WORDS; i += LINE_WORDS)
        words[i] = words[i] + 1;
}

static void step(struct writer *w)
{
    uint64_t page;
    if (w->kind == KIND_SEQUENTIAL) {
        page = w->next;
        w->next = page + 1 == w->n_pages ? 0 : page + 1;
    } else {
        page = report_random(&w->random) % w->n_pages;
    }
    write_page(w, page);
}

/* 2^SUB_BITS buckets per power of two, from 1024 ns on ("1 us"). */
static unsigned bucket_of(uint64_t ns)
{
    unsigned log2 = 63u - (unsigned)__builtin_clzll(ns);
    unsigned sub = (unsigned)(ns >> (log2 - SUB_BITS)) & ((1u << SUB_BITS) - 1);
    unsigned bucket = ((log2 - 10u) << SUB_BITS) + sub;
    return bucket < N_BUCKETS ? bucket : N_BUCKETS - 1;
}

static void count(struct writer *w, uint64_t step_ns, uint64_t gap_ns)
{
    w->steps++;
    w->line_steps++;
    w->step_ns += step_ns;
    if (gap_ns > w->gap_ns)
        w->gap_ns = gap_ns;
    if (step_ns >= 1024)
        w->slow[bucket_of(step_ns)]++;
}

static void print_counters(struct writer *w, uint64_t now_ns)
{
    static char slow[N_BUCKETS * 16];
    size_t at = 0;
    slow[0] = 0;
    for (unsigned b = 0; b < N_BUCKETS; b++) {
        if (w->slow[b] && at < 3000)
            at += (size_t)snprintf(slow + at, sizeof(slow) - at, "%s%u:%u", at ? "," : "", b,
                                   w->slow[b]);
        w->slow[b] = 0;
    }
    char line[4096];
    int n =
        snprintf(line, sizeof(line), "WRITER up=%.4f steps=%llu gap_ms=%.3f step_us=%.3f slow=%s\n",
                 (double)now_ns * 1e-9, (unsigned long long)w->steps, (double)w->gap_ns * 1e-6,
                 w->line_steps ? (double)w->step_ns * 1e-3 / (double)w->line_steps : 0.0, slow);
    if (n < 0 || write(STDOUT_FILENO, line, (size_t)n) < 0)
        _exit(1);
    w->line_steps = w->step_ns = w->gap_ns = 0;
}

/* Sleeps when an idle guest has nothing to do, or when the next step is not due yet (then true). */
static bool wait_for_step(const struct writer *w, uint64_t rate, uint64_t start_ns)
{
    uint64_t elapsed_ns = report_now_ns() - start_ns;
    bool early = rate && (double)elapsed_ns * 1e-9 * (double)rate <= (double)w->steps;
    if (w->kind == KIND_IDLE || early)
        nanosleep(&(struct timespec){.tv_nsec = w->kind == KIND_IDLE ? 1000000 : 100000}, NULL);
    return early;
}

static void work(struct writer *w, uint64_t rate, uint64_t interval_ns)
{
    uint64_t start = report_now_ns(), last = start, print = start;
    for (;;) {
        if (wait_for_step(w, rate, start))
            continue;
        uint64_t before = report_now_ns();
        step(w);
        uint64_t now = report_now_ns();
        count(w, now - before, now - last);
        last = now;
        if (now >= print) {
            print_counters(w, now);
            last = report_now_ns(); /* the console is slow, and nobody's stall */
            print = now + interval_ns;
        }
    }
}

int main(int argc, char **argv)
{
    struct writer w = {.kind = kind_of(argc, argv), .random = report_seed()};
    uint64_t n_pages = report_option(argc, argv, "mib", 64) * 256;
    uint64_t hot_pages = report_option(argc, argv, "hot_mib", 64) * 256;
    if (n_pages == 0 || hot_pages == 0) {
        errno = EINVAL;
        report_die("writer", "mib");
    }
    w.words = mmap(NULL, n_pages * PATTERN_PAGE_BYTES, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (w.words == MAP_FAILED)
        report_die("writer", "mmap");
    fill_all(w.words, n_pages);
    w.n_pages = n_pages;
    if (w.kind == KIND_HOT && hot_pages < n_pages)
        w.n_pages = hot_pages;
    if (w.kind == KIND_IDLE)
        w.n_pages = 1;
    report_line("WRITER ready mib=%llu", (unsigned long long)(n_pages / 256));
    work(&w, report_option(argc, argv, "rate", 0),
         report_option(argc, argv, "interval", 50) * 1000000);
}
