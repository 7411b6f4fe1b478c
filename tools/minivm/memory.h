/* memory.h - the guest's RAM: one mapping of exactly the size asked for. */
#ifndef MINIVM_MEMORY_H
#define MINIVM_MEMORY_H

#include <stdint.h>

#include "options.h"

struct memory {
    uint8_t *hva;
    uint64_t bytes;
    enum memory_kind kind;
};

/* Maps it and touches none of it. -errno. */
int memory_open(struct memory *m, const struct options *o);

/* The state page of a vCPU. */
struct guest_state *memory_state(const struct memory *m, unsigned vcpu);

/* Writes the state pages and populates the rest as the options say; by several threads. */
void memory_fill(const struct memory *m, const struct options *o);

/* Word `i` of a populated page that carries neither its start nor a mark: about 3:1 by zstd -1. */
static inline uint64_t memory_content(uint64_t number, unsigned i)
{
    uint64_t x = (number * GUEST_PAGE_WORDS + i + 1) * 0x9e3779b97f4a7c15ull;
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93ull;
    x ^= x >> 32;
    unsigned kind = (unsigned)(x >> 60);
    if (kind < 3)
        return x; /* what does not compress */
    if (kind < 6)
        return 0x00007f3400000000ull | (x & 0xffff8); /* pointers */
    return kind < 10 ? x & 0xff : 0;                  /* small numbers, nothing */
}

#endif
