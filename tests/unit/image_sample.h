/* image_sample.h - a small image with known contents, for the tests of reader, verify and tools. */
#ifndef VMSNAP_TESTS_IMAGE_SAMPLE_H
#define VMSNAP_TESTS_IMAGE_SAMPLE_H

#include "common/image/writer.h"

#define SAMPLE_REGIONS 3u
#define SAMPLE_INSTANT_NS 1700000000123456789ull
#define SAMPLE_DESCRIPTION "{\"vm_name\":\"sample\"}"
#define SAMPLE_POISONED_PAGE 9u /* of region 0: reads as zeros */

/* "ram" (its last cluster is short), "bios" (one page), "zeros" (no page stored). */
extern const struct region sample_regions[SAMPLE_REGIONS];

/* What page `page` of a region holds. */
void sample_page(uint32_t region, uint64_t page, void *out);

/* Fills a cluster as the image has it; returns its length. *pages_stored: pages not all zero. */
uint32_t sample_cluster(uint32_t region, uint64_t cluster_in_region, void *out,
                        unsigned *pages_stored);

/* Writes the sample through `sink` and commits it. One cluster is added twice, with other contents
 * the first time. 0 or -errno. */
int sample_write(struct sink *sink, struct error *e);

/* The same to a file. */
int sample_write_file(const char *path, struct error *e);

/* The same in a memfd that the caller may damage; it is never unmapped. */
struct sample_memory {
    int fd;
    uint8_t *bytes; /* the file, mapped to be written */
    uint64_t n_bytes;
};

int sample_in_memory(struct sample_memory *m, struct error *e);

#endif
