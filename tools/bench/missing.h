/* missing.h - the benchmark's floor of a restore: missing pages that are only put in. */
#ifndef VMSNAP_TOOLS_BENCH_MISSING_H
#define VMSNAP_TOOLS_BENCH_MISSING_H

#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"

/*
 * Takes over [start, start + length of the file) of process `pid` (absent memory in one mapping),
 * prints {"type": "ready"}, and puts in, for each fault, the `unit_bytes` round it (a multiple of
 * the page) from the file, which holds the memory as it is. When stdin is closed it prints a
 * summary. A page that was not asked for is zero from then on: the guest must have ended. 0 or
 * -errno.
 */
int missing_run(pid_t pid, uint64_t start, const char *path, uint64_t unit_bytes, struct error *e);

#endif
