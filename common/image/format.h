/*
 * format.h - the bytes of an image, as docs/format.md describes them. All integers are
 * little-endian. An image is a sequence of zstd frames: page data in data frames, all else in
 * skippable frames, so that `zstd -t` accepts the whole.
 *
 *     header (4096 bytes) | cluster records ... | sections ... | trailer (4096 bytes)
 */
#ifndef VMSNAP_COMMON_IMAGE_FORMAT_H
#define VMSNAP_COMMON_IMAGE_FORMAT_H

#include <assert.h>
#include <stdint.h>

#define IMAGE_PAGE_BYTES 4096u
#define IMAGE_CLUSTER_BYTES 16384u
#define IMAGE_CLUSTER_PAGES (IMAGE_CLUSTER_BYTES / IMAGE_PAGE_BYTES)
#define IMAGE_FRAME_MAX 16512u /* bytes of one cluster's zstd frame: the worst case, rounded up */

#define IMAGE_VERSION 1u        /* what this program writes */
#define IMAGE_COMPAT_VERSION 1u /* the oldest reader version that can read it */

/* zstd skippable frame magics: 0x184D2A50 to 0x184D2A5F. */
#define IMAGE_SKIP_HEADER 0x184D2A50u
#define IMAGE_SKIP_RECORD 0x184D2A51u
#define IMAGE_SKIP_SECTION 0x184D2A52u
#define IMAGE_SKIP_TRAILER 0x184D2A53u

#define IMAGE_HEADER_MAGIC "VMSNAPIM"
#define IMAGE_TRAILER_MAGIC "VMSNAPEN"

struct image_header {
    uint32_t skip_magic; /* IMAGE_SKIP_HEADER */
    uint32_t skip_bytes; /* 4096 - 8 */
    char magic[8];       /* IMAGE_HEADER_MAGIC */
    uint32_t version;
    uint32_t compat_version; /* a reader older than this refuses the image */
    uint8_t image_id[16];    /* random (RFC 9562 version 4) */
    uint32_t page_bytes;     /* 4096 */
    uint32_t cluster_bytes;  /* 16384 */
    uint64_t checksum;       /* XXH3-64 of the 4096 bytes, this field as zero */
    uint8_t reserved[4040];  /* zero */
};
static_assert(sizeof(struct image_header) == 4096, "on-disk size");

/*
 * A cluster record: this prefix (a skippable frame), then one zstd frame that decodes to the
 * cluster (shorter at the end of a region). The checksum covers the cluster number and the zstd
 * frame: XXH3-64 of the bytes from `cluster` to the end of the frame, seeded with the first 8 bytes
 * of the image id, so that a record of another image or another place does not pass. skip_magic
 * and skip_bytes are constants and are compared.
 */
struct image_record {
    uint32_t skip_magic; /* IMAGE_SKIP_RECORD */
    uint32_t skip_bytes; /* 16 */
    uint64_t checksum;
    uint64_t cluster; /* number in the whole image */
};
static_assert(sizeof(struct image_record) == 24, "on-disk size");

/* An index entry, one per cluster: offset of its record << 16 | bytes of its zstd frame. */
#define IMAGE_INDEX_MISSING 0ull /* never in a finished image */
#define IMAGE_INDEX_ZERO 1ull    /* all zeros, nothing stored */
#define IMAGE_INDEX(offset, frame_bytes) ((uint64_t)(offset) << 16 | (uint64_t)(frame_bytes))
#define IMAGE_INDEX_OFFSET(entry) ((entry) >> 16)
#define IMAGE_INDEX_BYTES(entry) ((uint32_t)((entry)&0xffffu))

enum image_section_type {
    IMAGE_SECTION_REGIONS = 1,      /* struct image_region[] */
    IMAGE_SECTION_GPA = 2,          /* struct image_gpa[] */
    IMAGE_SECTION_INDEX = 3,        /* uint64_t[] by cluster number */
    IMAGE_SECTION_HOT = 4,          /* struct image_hot[] in the order of first writes */
    IMAGE_SECTION_POISON = 5,       /* struct image_poison[] ascending */
    IMAGE_SECTION_DEVICE_STATE = 6, /* opaque, the VMM's own */
    IMAGE_SECTION_DESCRIPTION = 7,  /* JSON: the VM, its command line, the instant */
};

/* A section is a skippable frame: 8 bytes {IMAGE_SKIP_SECTION, payload bytes}, then its payload.
 * A reader ignores sections whose type it does not know. */
struct image_section {
    uint32_t type;
    uint32_t reserved; /* zero */
    uint64_t offset;   /* of the frame in the file */
    uint64_t bytes;    /* of the payload */
    uint64_t checksum; /* XXH3-64 of the whole frame, its 8 first bytes included */
};
static_assert(sizeof(struct image_section) == 32, "on-disk size");

struct image_region {
    uint64_t bytes;
    uint64_t max_bytes;
    uint64_t first_cluster; /* regions follow each other; each starts on a new cluster */
    uint32_t page_bytes;
    uint32_t kind;  /* enum region_kind */
    uint32_t flags; /* zero */
    uint32_t name_bytes;
    char name[256]; /* zero-padded */
    uint8_t reserved[8];
};
static_assert(sizeof(struct image_region) == 304, "on-disk size");

struct image_gpa {
    uint64_t gpa, bytes, offset;
    uint32_t region, flags; /* GPA_ROM */
};
static_assert(sizeof(struct image_gpa) == 32, "on-disk size");

struct image_hot {
    uint64_t cluster;
    uint64_t written; /* bit i: page i of the cluster was written */
};
static_assert(sizeof(struct image_hot) == 16, "on-disk size");

struct image_poison {
    uint64_t cluster;
    uint64_t pages; /* bit i: page i of the cluster is poisoned; it decodes as zeros */
};
static_assert(sizeof(struct image_poison) == 16, "on-disk size");

#define IMAGE_MAX_SECTIONS 32u
#define IMAGE_MAX_REGIONS 4096u

struct image_trailer {
    uint32_t skip_magic;  /* IMAGE_SKIP_TRAILER */
    uint32_t skip_bytes;  /* 4096 - 8 */
    char magic[8];        /* IMAGE_TRAILER_MAGIC */
    uint8_t image_id[16]; /* as in the header */
    uint64_t file_bytes;  /* of the whole image */
    uint64_t instant_ns;  /* the point in time, CLOCK_REALTIME */
    uint64_t n_clusters;
    uint64_t records_end; /* file offset where the cluster records end */
    uint64_t pages_zero, pages_stored, pages_poisoned, pages_from_faults;
    uint32_t n_sections;
    uint32_t reserved0;
    struct image_section sections[IMAGE_MAX_SECTIONS];
    uint8_t reserved[4096 - 104 - 32 * 32 - 8];
    uint64_t checksum; /* XXH3-64 of the 4096 bytes, this field as zero */
};
static_assert(sizeof(struct image_trailer) == 4096, "on-disk size");

#endif
