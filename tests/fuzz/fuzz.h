/* fuzz.h - a fuzz target, for libFuzzer and for the replay of its corpus (replay.c). */
#ifndef VMSNAP_TESTS_FUZZ_H
#define VMSNAP_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

/* libFuzzer's name for it. Returns 0; ends the process when something is wrong. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* How many inputs were good ones so far. */
uint64_t fuzz_accepted(void);

#endif
