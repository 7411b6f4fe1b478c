/* internal.h - shared by image/reader.c (opening, reading), image/check.c (what may be
 * believed) and image/verify.c (the whole file). */
#ifndef VMSNAP_COMMON_IMAGE_INTERNAL_H
#define VMSNAP_COMMON_IMAGE_INTERNAL_H

#include <stdbool.h>

#include "common/image/reader.h"

struct image {
    int fd;
    char *name;
    uint64_t file_bytes; /* as fstat() said at open */
    bool strict;         /* no newer than we are: reserved fields must be zero */
    struct image_header header;
    struct image_trailer trailer;
    /* The payloads, private copies. */
    struct image_region *regions;
    uint32_t n_regions;
    struct image_gpa *gpa;
    uint64_t n_gpa;
    uint64_t *index;
    struct image_hot *hot;
    uint64_t n_hot;
    struct image_poison *poison;
    uint64_t n_poison;
    void *device_state;
    uint64_t device_state_bytes;
    char *description;
};

/* Fills *e with exit code 13 and "NAME: TEXT (at file offset N)". Returns -EBADMSG. */
int image_damaged(const struct image *img, struct error *e, uint64_t offset, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Reads exactly `len` bytes. -EIO and others of pread(2); -EBADMSG when the file has become
 * shorter. */
int image_pread(const struct image *img, void *buf, size_t len, uint64_t offset, struct error *e);

uint64_t image_record_seed(const struct image *img);

/* The file offset of payload byte `at` of the first section of a type. */
uint64_t image_section_offset(const struct image *img, enum image_section_type type, uint64_t at);

/* image/check.c: each looks only at what the ones above it have passed. */
int image_check_header(struct image *img, struct error *e);
int image_check_trailer(const struct image *img, struct error *e);
int image_check_regions(const struct image *img, struct error *e);
int image_check_gpa(const struct image *img, struct error *e);
int image_check_index(const struct image *img, struct error *e);
int image_check_hot(const struct image *img, struct error *e);
int image_check_poison(const struct image *img, struct error *e);

/* The constants and the checksum of a record (its prefix and its frame, at any alignment) that is
 * to be cluster `cluster` (UINT64_MAX: any): NULL, or what is wrong with it. */
const char *image_check_record(const struct image *img, const void *record, uint64_t frame_bytes,
                               uint64_t cluster);

#endif
