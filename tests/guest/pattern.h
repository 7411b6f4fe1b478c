/*
 * pattern.h - what the test guests' pages hold, so that the guest itself, and a checker outside
 * that has only an image or another process's memory, can tell a right page from a wrong one.
 *
 * Every page starts with a 64-byte header; the rest follows from it. Kinds:
 *
 *   PAGE_SELFCHECK  `value` is the page's generation; the words after the header are a function of
 *                   (run, page, generation), so a stale page is as wrong as a torn one. Every 16th
 *                   generation is a page of zeros, header included.
 *   PAGE_STEPPER    `value` counts rounds; the last word of the page repeats it and is written
 *                   after it. The words between never change: a function of (run, page).
 *   PAGE_BOOT       as PAGE_STEPPER, written by the firmware guest (kvm_boot.S): the words between
 * are zero.
 *
 * A stepper adds one to page 0, 1, 2, ... in strict order, round after round. So at any true
 * instant the values never rise from one page to the next, first and last differ by at most one,
 * and at most one page (the first that still has the old tail) is half done.
 */
#ifndef VMSNAP_TESTS_GUEST_PATTERN_H
#define VMSNAP_TESTS_GUEST_PATTERN_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PATTERN_PAGE_BYTES 4096u
#define PATTERN_WORDS (PATTERN_PAGE_BYTES / 8)
#define PATTERN_MAGIC0 0x5041534d565f4547ull /* kvm_boot.S holds the same two */
#define PATTERN_MAGIC1 0x9e3779b97f4a7c15ull

enum page_kind {
    PAGE_SELFCHECK = 1,
    PAGE_STEPPER = 2,
    PAGE_BOOT = 3,
};

struct page_header {
    uint64_t magic[2];
    uint32_t kind;
    uint32_t owner; /* which process of several wrote it */
    uint64_t page;  /* number of the page among `total` */
    uint64_t total;
    uint64_t run;   /* random: pages of an earlier boot do not count */
    uint64_t value; /* generation or round */
    uint64_t reserved;
};
static_assert(sizeof(struct page_header) == 64, "kvm_boot.S and pagecheck.c know the layout");
#define PATTERN_HEADER_WORDS (sizeof(struct page_header) / 8)

/* The finalizer of splitmix64: every input bit reaches every output bit. */
static inline uint64_t pattern_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* First word and step of the body of (run, page, value). Every second page steps by a small
 * number, so that a compressor finds something to do, as in a real guest. */
static inline void pattern_body(uint64_t run, uint64_t page, uint64_t value, uint64_t *first,
                                uint64_t *step)
{
    *first = pattern_mix(run ^ pattern_mix(page * 0x100000001b3ull + value));
    *step = page % 2 ? 0x9e3779b97f4a7c15ull : 0;
}

/* True when generation `value` of a PAGE_SELFCHECK page is all zeros. */
static inline bool pattern_is_zero_generation(uint64_t value)
{
    return value % 16 == 15;
}

/* Writes generation `value` of a PAGE_SELFCHECK page. */
static inline void pattern_fill(uint64_t *words, struct page_header header)
{
    if (pattern_is_zero_generation(header.value)) {
        memset(words, 0, PATTERN_PAGE_BYTES);
        return;
    }
    uint64_t word, step;
    pattern_body(header.run, header.page, header.value, &word, &step);
    memcpy(words, &header, sizeof(header));
    for (size_t i = PATTERN_HEADER_WORDS; i < PATTERN_WORDS; i++, word += step)
        words[i] = word;
}

/* Compares the body words [from, to) with what (run, page, value) asks for. Returns the index of
 * the first wrong word, or PATTERN_WORDS. */
static inline size_t pattern_check_body(const uint64_t *words, size_t to, uint64_t run,
                                        uint64_t page, uint64_t value)
{
    uint64_t word, step;
    pattern_body(run, page, value, &word, &step);
    for (size_t i = PATTERN_HEADER_WORDS; i < to; i++, word += step) {
        if (words[i] != word)
            return i;
    }
    return PATTERN_WORDS;
}

/* Checks a PAGE_SELFCHECK page that should be what pattern_fill() wrote. Returns the index of the
 * first wrong word, or PATTERN_WORDS. */
static inline size_t pattern_check(const uint64_t *words, const struct page_header *header)
{
    if (pattern_is_zero_generation(header->value)) {
        for (size_t i = 0; i < PATTERN_WORDS; i++) {
            if (words[i] != 0)
                return i;
        }
        return PATTERN_WORDS;
    }
    uint64_t wanted[PATTERN_HEADER_WORDS];
    memcpy(wanted, header, sizeof(wanted));
    for (size_t i = 0; i < PATTERN_HEADER_WORDS; i++) {
        if (words[i] != wanted[i])
            return i;
    }
    return pattern_check_body(words, PATTERN_WORDS, header->run, header->page, header->value);
}

#endif
