/*
 * stepper - the oracle for a point in time: adds one to a counter in page 0, 1, 2, ... in strict
 * order, for ever (pattern.h says what that means for an image). It looks at each page first: a
 * page that is not where it left it is an ERROR line.
 *
 *   stepper [mib=64] [interval=100] [pause_us=0]
 *
 * pause_us: sleep between two rounds. Prints every `interval` ms:
 *
 *   STEPPER up=12.345 rounds=1234 errors=0 gap_ms=0.100
 */
#include <errno.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "pattern.h"
#include "report.h"

#define MAX_ERROR_LINES 20u
#define LOOK_EVERY 64u /* pages between two looks at the clock */

struct stepper {
    uint64_t *words;
    uint64_t n_pages;
    uint64_t run;
    uint64_t rounds, errors;
    uint64_t last_ns, gap_ns;
};

static void fill_all(struct stepper *s)
{
    for (uint64_t page = 0; page < s->n_pages; page++) {
        uint64_t *words = s->words + page * PATTERN_WORDS, word, step;
        struct page_header header = {
            .magic = {PATTERN_MAGIC0, PATTERN_MAGIC1},
            .kind = PAGE_STEPPER,
            .page = page,
            .total = s->n_pages,
            .run = s->run,
        };
        pattern_body(s->run, page, 0, &word, &step);
        for (size_t i = PATTERN_HEADER_WORDS; i < PATTERN_WORDS - 1; i++, word += step)
            words[i] = word;
        words[PATTERN_WORDS - 1] = 0;
        memcpy(words, &header, sizeof(header));
    }
}

/* Head, then tail, then the next page: release stores keep that order (x86 keeps it among
 * stores, in a guest's memory as well). */
static void step_page(struct stepper *s, uint64_t page)
{
    uint64_t *words = s->words + page * PATTERN_WORDS;
    struct page_header *header = (struct page_header *)(void *)words;
    _Atomic uint64_t *head = (_Atomic uint64_t *)&header->value;
    _Atomic uint64_t *tail = (_Atomic uint64_t *)&words[PATTERN_WORDS - 1];
    uint64_t there = atomic_load_explicit(head, memory_order_relaxed);
    uint64_t there_tail = atomic_load_explicit(tail, memory_order_relaxed);
    if (there != s->rounds || there_tail != s->rounds || header->page != page) {
        if (s->errors++ < MAX_ERROR_LINES)
            report_line("ERROR stepper page=%llu round=%llu there=%llu tail=%llu",
                        (unsigned long long)page, (unsigned long long)s->rounds,
                        (unsigned long long)there, (unsigned long long)there_tail);
    }
    atomic_store_explicit(head, s->rounds + 1, memory_order_release);
    atomic_store_explicit(tail, s->rounds + 1, memory_order_release);
}

static void step_round(struct stepper *s)
{
    for (uint64_t page = 0; page < s->n_pages; page++) {
        step_page(s, page);
        if (page % LOOK_EVERY == 0) {
            uint64_t now = report_now_ns();
            s->gap_ns = now - s->last_ns > s->gap_ns ? now - s->last_ns : s->gap_ns;
            s->last_ns = now;
        }
    }
    s->rounds++;
}

int main(int argc, char **argv)
{
    struct stepper s = {.run = report_seed()};
    s.n_pages = report_option(argc, argv, "mib", 64) * 256;
    uint64_t interval_ns = report_option(argc, argv, "interval", 100) * 1000000;
    uint64_t pause_us = report_option(argc, argv, "pause_us", 0);
    size_t bytes = s.n_pages * PATTERN_PAGE_BYTES;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        report_die("stepper", "mmap");
    /* No copies of these pages may lie about: khugepaged and compaction would leave some. */
    if (madvise(p, bytes, MADV_NOHUGEPAGE) != 0 && errno != EINVAL)
        report_die("stepper", "MADV_NOHUGEPAGE");
    s.words = p;
    fill_all(&s);
    if (mlock(p, bytes) != 0 && errno != EPERM && errno != ENOMEM)
        report_die("stepper", "mlock");
    report_line("STEPPER ready mib=%llu", (unsigned long long)(s.n_pages / 256));
    uint64_t print = s.last_ns = report_now_ns();
    for (;;) {
        step_round(&s);
        if (s.last_ns >= print) {
            report_line("STEPPER up=%.3f rounds=%llu errors=%llu gap_ms=%.3f",
                        (double)s.last_ns * 1e-9, (unsigned long long)s.rounds,
                        (unsigned long long)s.errors, (double)s.gap_ns * 1e-6);
            s.gap_ns = 0;
            print = s.last_ns + interval_ns;
        }
        if (pause_us)
            nanosleep(&(struct timespec){.tv_sec = (time_t)(pause_us / 1000000),
                                         .tv_nsec = (long)(pause_us % 1000000) * 1000},
                      NULL);
    }
}
