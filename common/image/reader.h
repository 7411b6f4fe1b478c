/*
 * reader.h - opens and checks an image; hands out clusters that have passed their checksum.
 * Everything but the clusters is read into private memory and checked once at open; every length
 * is bounded by the file's size before it is believed. Errors: exit code 13 with the file offset
 * for what is no image or a damaged one, 1 for a file that can't be opened.
 * After image_open() all calls but image_close() may be made by any thread at once. Pointers that
 * are handed out live until image_close().
 */
#ifndef VMSNAP_COMMON_IMAGE_READER_H
#define VMSNAP_COMMON_IMAGE_READER_H

#include <stdint.h>

#include "common/codec.h"
#include "common/error.h"
#include "common/image/format.h"

struct image;

int image_open(struct image **out, const char *path, struct error *e);

/* The same on an open descriptor, which is the image's from then on, also on failure. `name` is for
 * messages. */
int image_open_fd(struct image **out, int fd, const char *name, struct error *e);

void image_close(struct image *img);

int image_fd(const struct image *img);
const struct image_header *image_get_header(const struct image *img);
const struct image_trailer *image_get_trailer(const struct image *img);
const struct image_region *image_regions(const struct image *img, uint32_t *n);
const struct image_gpa *image_gpa_ranges(const struct image *img, uint64_t *n);
const struct image_hot *image_hot_list(const struct image *img, uint64_t *n);
const struct image_poison *image_poison_list(const struct image *img, uint64_t *n);
const void *image_device_state(const struct image *img, uint64_t *bytes);
const char *image_description(const struct image *img); /* JSON text, zero-terminated */

uint64_t image_index_entry(const struct image *img, uint64_t cluster);

/* Whether all bytes of [cluster, cluster + n) are zero, by the index. */
bool image_is_zero(const struct image *img, uint64_t cluster, uint64_t n);

/* The region of a cluster, and where in it the cluster starts. */
uint32_t image_cluster_region(const struct image *img, uint64_t cluster, uint64_t *offset);

/* Bytes the cluster decodes to: IMAGE_CLUSTER_BYTES, less at the end of a region. */
uint32_t image_cluster_bytes(const struct image *img, uint64_t cluster);

/* Bit i: page i of the cluster is poisoned (decodes as zeros and must be poisoned, not given). */
uint64_t image_cluster_poison(const struct image *img, uint64_t cluster);

/*
 * Reads, checks and decodes one cluster into `out` (IMAGE_CLUSTER_BYTES). A zero cluster is
 * filled with zeros without I/O. Any thread, each with its own codec. -EBADMSG: damaged, -EIO and
 * others: could not be read; *e (may be NULL) names the region, page and file offset.
 */
int image_read_cluster(const struct image *img, uint64_t cluster, struct codec *codec, void *out,
                       struct error *e);

/*
 * The same in two steps, for who reads by other means. Where the cluster's record stands in the
 * file, and its length, at most IMAGE_RECORD_MAX; 0: a zero cluster has none.
 */
#define IMAGE_RECORD_MAX (sizeof(struct image_record) + IMAGE_FRAME_MAX)
uint64_t image_cluster_record(const struct image *img, uint64_t cluster, uint32_t *bytes);
/* Checks and decodes what was read from there (not looked at for a zero cluster). */
int image_decode_cluster(const struct image *img, uint64_t cluster, struct codec *codec,
                         const void *record, void *out, struct error *e);
/* The error for one that could not be read; `err` 0: the file ends before it does. */
int image_cluster_unread(const struct image *img, uint64_t cluster, int err, struct error *e);

/* What image_verify() says while it goes. Each may be NULL. */
struct image_verify_calls {
    /* A damaged place; cluster is UINT64_MAX when it is not the record of a cluster. By one thread
     * at a time, in no particular order. */
    void (*damage)(void *opaque, uint64_t cluster, uint64_t offset, const char *what);
    /* How far it is; by the calling thread, about every MiB. */
    void (*progress)(void *opaque, uint64_t done_bytes, uint64_t total_bytes);
    void *opaque;
};

struct image_verify_result {
    uint64_t pages_checked; /* pages of the guest, zero ones included */
    uint64_t pages_damaged;
    uint64_t places_damaged; /* calls of `damage` */
    uint64_t bytes_read;
};

/*
 * Walks every byte of the file, checks every checksum and decodes every record, also those that the
 * index no longer names. 0 when all is well; -EBADMSG with exit code 13 when anything is damaged;
 * else what kept it from looking. *result is filled in every case.
 */
int image_verify(const struct image *img, unsigned n_threads,
                 const struct image_verify_calls *calls, struct image_verify_result *result,
                 struct error *e);

#endif
