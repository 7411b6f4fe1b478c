#include "restore/memory/blocks.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static struct region *find_named(struct region *regions, uint32_t n, const char *name)
{
    for (uint32_t i = 0; i < n; i++)
        if (strcmp(regions[i].name, name) == 0)
            return &regions[i];
    return NULL;
}

/*
 * A block of the process fits when it has the recorded length, or when QEMU can bring it there: a
 * resizable block (its used length below its maximum) takes the length that the stream tells.
 */
static int check_lengths(const struct image_region *saved, const struct region *r, struct error *e)
{
    bool resizable = saved->max_bytes > saved->bytes || r->max_bytes > r->bytes;
    if (saved->bytes == r->bytes || (resizable && saved->bytes <= r->max_bytes))
        return 0;
    error_set(e, VMSNAP_EXIT_MISMATCH, 0,
              "memory block '%s' has %" PRIu64 " bytes in the image, but %" PRIu64
              " in the VMM that was started",
              saved->name, saved->bytes, r->bytes);
    error_hint(e,
               "the command line must give the guest the memory it had ('vmsnap info' shows it)");
    return -EINVAL;
}

static int take_block(struct block *b, const struct image_region *saved, struct region *r,
                      struct error *e)
{
    int rc = check_lengths(saved, r, e);
    if (rc)
        return rc;
    if (saved->bytes % r->page_bytes != 0) {
        error_set(e, VMSNAP_EXIT_MISMATCH, 0,
                  "memory block '%s' does not fill whole pages of %" PRIu64 " bytes here",
                  saved->name, r->page_bytes);
        error_hint(e, "give a command line after -- on which this memory has no huge pages: the "
                      "same backend and id with hugetlb=off, or a mem-path elsewhere");
        return -EINVAL;
    }
    *b = (struct block){
        .region = *r,
        .bytes = saved->bytes,
        .first_cluster = saved->first_cluster,
        .n_clusters = (saved->bytes + IMAGE_CLUSTER_BYTES - 1) / IMAGE_CLUSTER_BYTES,
        .unit_bytes = r->page_bytes > IMAGE_CLUSTER_BYTES ? r->page_bytes : IMAGE_CLUSTER_BYTES,
    };
    r->fd = -1; /* the block's now */
    return 0;
}

static int compare_blocks(const void *a, const void *b)
{
    uint64_t x = ((const struct block *)a)->region.hva;
    uint64_t y = ((const struct block *)b)->region.hva;
    return (x > y) - (x < y);
}

/* A block of the process that the image knows nothing of: the device set differs. */
static int check_surplus(const struct image_region *saved, uint32_t n_saved,
                         const struct region *regions, uint32_t n_regions, struct error *e)
{
    for (uint32_t i = 0; i < n_regions; i++) {
        bool known = false;
        for (uint32_t j = 0; j < n_saved && !known; j++)
            known = strcmp(saved[j].name, regions[i].name) == 0;
        if (!known)
            return error_set(e, VMSNAP_EXIT_MISMATCH, 0,
                             "the VMM that was started has a memory block '%s' that the image does "
                             "not know: its devices differ",
                             regions[i].name);
    }
    return 0;
}

int blocks_match(struct blocks *out, const struct image *img, struct region *regions,
                 uint32_t n_regions, struct error *e)
{
    uint32_t n_saved;
    const struct image_region *saved = image_regions(img, &n_saved);
    int rc = check_surplus(saved, n_saved, regions, n_regions, e);
    if (rc)
        return rc;
    out->count = 0;
    out->items = calloc(n_saved ? n_saved : 1, sizeof(*out->items));
    if (!out->items)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "no memory for the block table");
    for (uint32_t i = 0; i < n_saved; i++) {
        struct region *r = find_named(regions, n_regions, saved[i].name);
        if (!r)
            rc = error_set(e, VMSNAP_EXIT_MISMATCH, 0,
                           "the VMM that was started has no memory block '%s': its devices differ "
                           "from those of the image",
                           saved[i].name);
        else
            rc = take_block(&out->items[out->count], &saved[i], r, e);
        if (rc) {
            blocks_free(out);
            return rc;
        }
        out->count++;
    }
    qsort(out->items, out->count, sizeof(*out->items), compare_blocks);
    return 0;
}

void blocks_free(struct blocks *b)
{
    for (uint32_t i = 0; i < b->count; i++)
        region_close(&b->items[i].region);
    free(b->items);
    *b = (struct blocks){0};
}

const struct block *blocks_find(const struct blocks *b, uint64_t hva)
{
    uint32_t low = 0, high = b->count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        const struct block *at = &b->items[middle];
        if (hva < at->region.hva)
            high = middle;
        else if (hva - at->region.hva >= at->bytes)
            low = middle + 1;
        else
            return at;
    }
    return NULL;
}

const struct block *blocks_find_cluster(const struct blocks *b, uint64_t cluster)
{
    for (uint32_t i = 0; i < b->count; i++) {
        const struct block *at = &b->items[i];
        if (cluster >= at->first_cluster && cluster - at->first_cluster < at->n_clusters)
            return at;
    }
    return NULL;
}

uint64_t blocks_max_unit(const struct blocks *b)
{
    uint64_t max = IMAGE_CLUSTER_BYTES;
    for (uint32_t i = 0; i < b->count; i++)
        if (b->items[i].unit_bytes > max)
            max = b->items[i].unit_bytes;
    return max;
}
