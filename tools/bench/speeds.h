/* speeds.h - what a restore's background fill is made of, each part alone and on all CPUs. */
#ifndef VMSNAP_TOOLS_BENCH_SPEEDS_H
#define VMSNAP_TOOLS_BENCH_SPEEDS_H

#include <stdint.h>

#include "common/error.h"

#define SPEEDS_MAX_THREADS 256u

/*
 * Reads (from the page cache, if the image is there), checks and decodes every cluster of an image
 * that is not zero, and puts it nowhere. Prints {"type": "decode", "bytes", "ns", "clusters",
 * "p50_ns", "p99_ns"}: bytes of memory, the time of all, and that of one cluster. 0 or -errno.
 */
int speeds_decode(const char *image, unsigned n_threads, struct error *e);

/*
 * Fills `bytes` of another process's memory by UFFDIO_COPY of `piece_bytes` at a time. Prints
 * {"type": "copy", "bytes", "ns"}. 0 or -errno.
 */
int speeds_copy(uint64_t bytes, uint64_t piece_bytes, unsigned n_threads, struct error *e);

#endif
