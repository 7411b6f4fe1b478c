/* fuzz_image.h - the fuzz target, for libFuzzer and for the replay of its corpus. */
#ifndef VMSNAP_TESTS_FUZZ_IMAGE_H
#define VMSNAP_TESTS_FUZZ_IMAGE_H

#include <stddef.h>
#include <stdint.h>

/* libFuzzer's name for it. Returns 0; ends the process when something is wrong. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* How many inputs image_open() has accepted so far. */
uint64_t fuzz_images_opened(void);

#endif
