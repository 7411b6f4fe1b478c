/*
 * memory.h - the guest's RAM: one mapping of exactly the size asked for, or several regions with
 * holes between them. Pages are numbered throughout.
 */
#ifndef MINIVM_MEMORY_H
#define MINIVM_MEMORY_H

#include <stdint.h>

#include "options.h"

struct memory_region {
    uint8_t *hva;
    uint64_t bytes, gpa;
    uint64_t offset; /* in RAM, holes left out, and in a memory file */
};

struct memory {
    uint64_t bytes; /* of all regions */
    unsigned n_regions;
    struct memory_region regions[GUEST_MAX_REGIONS];
    enum memory_kind kind;
    int fd; /* what backs it, or -1 */
};

/* Maps it and touches none of it. -errno. */
int memory_open(struct memory *m, const struct options *o);

/* Where a page lies, and how many follow each other from it on. */
uint8_t *memory_page(const struct memory *m, uint64_t number);
uint64_t memory_pages_on(const struct memory *m, uint64_t number);

/* Gives `n` pages of one region back to the host, as Firecracker's balloon does: they read as zeros
 * from now on. For private memory of 4 KiB pages. 0 or -errno. */
int memory_discard(const struct memory *m, uint64_t number, uint64_t n);

/* Fills the guest's map, of guest-physical addresses or of ours. */
void memory_map(const struct memory *m, struct guest_region *map, bool physical);

/* The state page of a vCPU. */
struct guest_state *memory_state(const struct memory *m, unsigned vcpu);

/* Is `s`, of wherever, one that the guest may use as vCPU `vcpu` of `cpus` in this memory? In
 * threads its numbers become addresses in this process. */
bool memory_state_is_sound(const struct memory *m, const struct guest_state *s, unsigned vcpu,
                           unsigned cpus);

/* Writes the state pages and populates the rest as the options say; by several threads. */
void memory_fill(const struct memory *m, const struct options *o);

/*
 * What a populated page holds beside its start and its marks: lines of 64 bytes, each noise, one of
 * 8 that come again and again, pointers near each other, or nothing. About 3:1 by zstd -1, at the
 * speed that it has on the memory of a Linux guest; no two pages are equal.
 */
void memory_content(uint64_t number, uint64_t page[GUEST_PAGE_WORDS]);

#endif
