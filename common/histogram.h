/* histogram.h - latencies in nanoseconds, log-linear buckets (error below 3 %), no allocation. */
#ifndef VMSNAP_COMMON_HISTOGRAM_H
#define VMSNAP_COMMON_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_BUCKETS (64 * 32)

struct histogram {
    uint64_t count, max_ns;
    uint32_t buckets[HISTOGRAM_BUCKETS];
};

void histogram_add(struct histogram *h, uint64_t ns); /* one writer thread */
void histogram_merge(struct histogram *to, const struct histogram *from);
/* The value below which a `fraction` (0 to 1) of all lie; 0 when empty. */
uint64_t histogram_quantile(const struct histogram *h, double fraction);

#endif
