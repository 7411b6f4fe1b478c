/* memory.h - the guest's RAM: one mapping of exactly the size asked for. */
#ifndef MINIVM_MEMORY_H
#define MINIVM_MEMORY_H

#include <stdint.h>

#include "options.h"

struct memory {
    uint8_t *hva;
    uint64_t bytes;
    enum memory_kind kind;
    int fd; /* what backs it, or -1 */
};

/* Maps it and touches none of it. -errno. */
int memory_open(struct memory *m, const struct options *o);

/* The state page of a vCPU. */
struct guest_state *memory_state(const struct memory *m, unsigned vcpu);

/* Is `s`, of wherever, one that the guest may use as vCPU `vcpu` of `cpus` in this memory? In
 * threads its numbers become addresses in this process. */
bool memory_state_is_sound(const struct memory *m, const struct guest_state *s, unsigned vcpu,
                           unsigned cpus);

/* Writes the state pages and populates the rest as the options say; by several threads. */
void memory_fill(const struct memory *m, const struct options *o);

/*
 * Word `i` of a populated page that carries neither its start nor a mark. Lines of 64 bytes, each
 * noise, one of 8 that come again and again, pointers near each other, or nothing: about 3:1 by
 * zstd -1, at the speed that it has on the memory of a Linux guest. No two pages are equal.
 */
static inline uint64_t memory_content(uint64_t number, unsigned i)
{
    uint64_t line = number * (GUEST_PAGE_WORDS / 8) + i / 8 + 1;
    uint64_t h = line * 0x9e3779b97f4a7c15ull;
    h = (h ^ h >> 32) * 0xd6e8feb86659fd93ull;
    unsigned kind = (unsigned)(h >> 60);
    uint64_t word = (h + i) * 0xbf58476d1ce4e5b9ull;
    word ^= word >> 29;
    if (kind < 3)
        return word;
    if (kind < 9)
        return guest_mix((h >> 32 & 7) * 8 + i % 8 + 1);
    return kind < 13 ? 0x00007f3400000000ull | (h >> 16 & 0xff0000) | (word & 0xfff0) : 0;
}

#endif
