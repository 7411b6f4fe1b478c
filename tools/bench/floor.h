/* floor.h - the benchmark's floor: write faults that are only resolved. */
#ifndef VMSNAP_TOOLS_BENCH_FLOOR_H
#define VMSNAP_TOOLS_BENCH_FLOOR_H

#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"

#define FLOOR_MAX_BUSY 64u

/*
 * Takes over [start, start+bytes) of process `pid` (one mapping), prints {"type": "ready"},
 * write-protects it when "protect\n" comes on stdin (prints {"type": "protected", "arm_ns"}), and
 * resolves faults until stdin is closed; then the memory is free and a summary is printed.
 * Meanwhile n_busy (at most FLOOR_MAX_BUSY) threads of low priority keep the CPUs busy. 0 or
 * -errno.
 */
int floor_run(pid_t pid, uint64_t start, uint64_t bytes, unsigned n_busy, struct error *e);

#endif
