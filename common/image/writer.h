/*
 * writer.h - makes an image front to back. Workers add clusters in any order.
 *
 * Threads: add and add_zero from any thread at once (two calls for the same cluster must be ordered
 * by the caller); open, finish, totals and close from one thread, while no other uses it.
 */
#ifndef VMSNAP_COMMON_IMAGE_WRITER_H
#define VMSNAP_COMMON_IMAGE_WRITER_H

#include <stdint.h>

#include "common/error.h"
#include "common/image/format.h"
#include "common/sink/sink.h"
#include "common/target/region.h"

struct image_writer;

/* Starts an image on `sink` (not owned) for these regions (copied) and appends the header.
 * Assigns first_cluster in order: see image_writer_cluster(). A region's name is printable ASCII
 * and unique, its length a multiple of 4096 and not 0: else -EINVAL. */
int image_writer_open(struct image_writer **out, struct sink *sink, const struct region *regions,
                      uint32_t n_regions, struct error *e);

/* The number in the image of the cluster that holds byte `offset` of a region. */
uint64_t image_writer_cluster(const struct image_writer *w, uint32_t region, uint64_t offset);

uint64_t image_writer_n_clusters(const struct image_writer *w);
const uint8_t *image_writer_id(const struct image_writer *w); /* 16 bytes */

/* Appends the record of one cluster and notes it in the index; a later record of the same cluster
 * replaces an earlier one. The caller has put the zstd frame at record + sizeof(struct
 * image_record); the prefix is filled in here. `pages_stored`: pages of it that are not all zeros
 * (for the totals). Any thread; blocks as sink_append(). */
int image_writer_add(struct image_writer *w, uint64_t cluster, void *record, uint32_t frame_bytes,
                     unsigned pages_stored);

/* Notes that the cluster is all zeros. Any thread. */
void image_writer_add_zero(struct image_writer *w, uint64_t cluster);

struct image_finish {
    const struct gpa_range *gpa;
    uint32_t n_gpa;
    const struct image_hot *hot;
    uint64_t n_hot;
    const struct image_poison *poison;
    uint64_t n_poison;
    const void *device_state;
    uint64_t device_state_bytes;
    const char *description; /* JSON text */
    uint64_t instant_ns;
    uint64_t pages_from_faults;
};

/* Appends sections and trailer. Fails with -EINVAL if a cluster was never added (a bug, never
 * published). Does not commit the sink. */
int image_writer_finish(struct image_writer *w, const struct image_finish *f, struct error *e);

struct image_totals {
    uint64_t pages_total, pages_zero, pages_stored, pages_poisoned, image_bytes;
};
/* After image_writer_finish(). pages_total = zero + stored + poisoned. */
void image_writer_totals(const struct image_writer *w, struct image_totals *totals);

void image_writer_close(struct image_writer *w);

#endif
