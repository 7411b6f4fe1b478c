/*
 * histogram.c - buckets of a power of two split in 32: below 32 ns each value has its own, above
 * that a bucket is 1/32 of its power of two wide.
 */
#include "common/histogram.h"

#define SUB_BITS 5u
#define SUB_COUNT (1u << SUB_BITS)

static unsigned bucket_of(uint64_t ns)
{
    if (ns < SUB_COUNT)
        return (unsigned)ns;
    unsigned exponent = 63u - (unsigned)__builtin_clzll(ns); /* >= SUB_BITS */
    unsigned sub = (unsigned)(ns >> (exponent - SUB_BITS)) & (SUB_COUNT - 1);
    return (exponent - SUB_BITS + 1) * SUB_COUNT + sub;
}

/* The middle of a bucket. */
static uint64_t value_of(unsigned bucket)
{
    if (bucket < SUB_COUNT)
        return bucket;
    unsigned shift = bucket / SUB_COUNT - 1;
    uint64_t low = (uint64_t)(SUB_COUNT + bucket % SUB_COUNT) << shift;
    return low + ((1ull << shift) >> 1);
}

void histogram_add(struct histogram *h, uint64_t ns)
{
    h->count++;
    if (ns > h->max_ns)
        h->max_ns = ns;
    h->buckets[bucket_of(ns)]++;
}

void histogram_merge(struct histogram *to, const struct histogram *from)
{
    to->count += from->count;
    if (from->max_ns > to->max_ns)
        to->max_ns = from->max_ns;
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++)
        to->buckets[i] += from->buckets[i];
}

uint64_t histogram_quantile(const struct histogram *h, double fraction)
{
    if (h->count == 0)
        return 0;
    if (fraction >= 1.0)
        return h->max_ns;
    uint64_t rank = (uint64_t)(fraction * (double)h->count), seen = 0;
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += h->buckets[i];
        if (seen > rank) {
            uint64_t value = value_of(i);
            return value < h->max_ns ? value : h->max_ns;
        }
    }
    return h->max_ns;
}
