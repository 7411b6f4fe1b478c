/* blocks.h - the image's regions as they lie in the new process: the map from a fault's address to
 * the cluster that holds its content. */
#ifndef VMSNAP_RESTORE_BLOCKS_H
#define VMSNAP_RESTORE_BLOCKS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/image/reader.h"
#include "common/target/region.h"

struct block {
    struct region region;   /* in the new process; owned */
    uint64_t bytes;         /* what is restored: the image's length of it */
    uint64_t image_offset;  /* blocks_place(): where it starts in all of the image's memory */
    uint64_t first_cluster; /* the image's number of its first cluster */
    uint64_t n_clusters;
    uint64_t unit_bytes;   /* what is installed at once: a cluster, or the huge page */
    unsigned char *window; /* our own mapping of it (window.h), filled through it; NULL: none */
};

struct blocks {
    struct block *items; /* ascending by hva */
    uint32_t count;
};

/*
 * Matches the image's regions with those of the process by name, and checks lengths. Takes over
 * `regions` (the array stays the caller's to free(), its contents are moved). A region that is
 * missing on either side, or of another length, is exit code 15 and named.
 */
int blocks_match(struct blocks *out, const struct image *img, struct region *regions,
                 uint32_t n_regions, struct error *e);

/* A piece of a process's private anonymous memory, and where in the image its content is: all of
 * the image's regions put one after the other in their order. */
struct block_place {
    uint64_t hva, bytes, page_bytes;
    uint64_t offset;
};

/*
 * Makes blocks of places that somebody else chose: they need not be the image's regions, but must
 * be all of its memory, each in whole pages and whole clusters, and none twice; else exit code 15.
 */
int blocks_place(struct blocks *out, const struct image *img, const struct block_place *places,
                 uint32_t n_places, struct error *e);

void blocks_free(struct blocks *b);

/* The block that contains `hva`, or NULL. */
const struct block *blocks_find(const struct blocks *b, uint64_t hva);

/* The block whose clusters contain this number, or NULL. */
const struct block *blocks_find_cluster(const struct blocks *b, uint64_t cluster);

/* Where a cluster starts in its block. */
static inline uint64_t block_cluster_offset(const struct block *b, uint64_t cluster)
{
    return (cluster - b->first_cluster) * IMAGE_CLUSTER_BYTES;
}

/* The cluster that holds a byte of the block. */
static inline uint64_t block_cluster_at(const struct block *b, uint64_t offset)
{
    return b->first_cluster + offset / IMAGE_CLUSTER_BYTES;
}

/* The first cluster of the unit that a cluster is in. */
static inline uint64_t block_unit_of(const struct block *b, uint64_t cluster)
{
    return cluster - (cluster - b->first_cluster) % (b->unit_bytes / IMAGE_CLUSTER_BYTES);
}

/* `len`, or what there is of the block from `offset` on. */
static inline uint64_t block_clip(const struct block *b, uint64_t offset, uint64_t len)
{
    return offset + len > b->bytes ? b->bytes - offset : len;
}

/* The largest unit of all blocks. */
uint64_t blocks_max_unit(const struct blocks *b);

#endif
