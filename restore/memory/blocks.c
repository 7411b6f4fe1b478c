#include "restore/memory/blocks.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
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

/* ---- by offset ---- */

static const char *const own_image =
    "serve it the image of its own snapshot ('vmsnap info' shows how much memory an image has)";

static int refuse_place(const struct block_place *p, struct error *e, const char *why)
{
    int rc = error_set(e, VMSNAP_EXIT_MISMATCH, 0,
                       "the VMM's memory at 0x%" PRIx64 " (0x%" PRIx64 " bytes, offset 0x%" PRIx64
                       ") %s",
                       p->hva, p->bytes, p->offset, why);
    error_hint(e, "%s", own_image);
    return rc;
}

/* In MiB where that says all. */
static int refuse_size(uint64_t placed, uint64_t total, struct error *e)
{
    bool whole = placed % (1u << 20) == 0 && total % (1u << 20) == 0;
    const char *unit = whole ? "MiB" : "bytes";
    error_set(e, VMSNAP_EXIT_MISMATCH, 0,
              "the VMM has %" PRIu64 " %s of memory, the image %" PRIu64 " %s",
              whole ? placed >> 20 : placed, unit, whole ? total >> 20 : total, unit);
    error_hint(e, "%s", own_image);
    return -EINVAL;
}

/* The part of the place that lies in region `saved`, which begins at the image's byte `base`. */
static int place_part(struct block *b, const struct block_place *p,
                      const struct image_region *saved, uint64_t base, struct error *e)
{
    uint64_t low = p->offset > base ? p->offset : base;
    uint64_t high =
        p->offset + p->bytes < base + saved->bytes ? p->offset + p->bytes : base + saved->bytes;
    uint64_t hva = p->hva + (low - p->offset), in_region = low - base, bytes = high - low;
    if (hva % p->page_bytes || bytes % p->page_bytes || in_region % IMAGE_CLUSTER_BYTES ||
        bytes % IMAGE_CLUSTER_BYTES)
        return refuse_place(p, e, "can't be filled in whole pages from the image's memory blocks");
    *b = (struct block){
        .region = {.hva = hva,
                   .bytes = bytes,
                   .max_bytes = bytes,
                   .page_bytes = p->page_bytes,
                   .kind = REGION_ANON,
                   .fd = -1},
        .bytes = bytes,
        .image_offset = low,
        .first_cluster = saved->first_cluster + in_region / IMAGE_CLUSTER_BYTES,
        .n_clusters = bytes / IMAGE_CLUSTER_BYTES,
        .unit_bytes = p->page_bytes > IMAGE_CLUSTER_BYTES ? p->page_bytes : IMAGE_CLUSTER_BYTES,
    };
    int n = snprintf(b->region.name, sizeof(b->region.name), in_region ? "%.200s+0x%" PRIx64 : "%s",
                     saved->name, in_region);
    (void)n; /* a long name is cut */
    return 0;
}

/* All parts of one place; out->items has room for one in each region. */
static int place_one(struct blocks *out, const struct image *img, const struct block_place *p,
                     struct error *e)
{
    uint32_t n_saved;
    const struct image_region *saved = image_regions(img, &n_saved);
    uint64_t base = 0;
    int rc = 0;
    for (uint32_t i = 0; i < n_saved && rc == 0; base += saved[i++].bytes) {
        if (p->offset + p->bytes <= base || p->offset >= base + saved[i].bytes)
            continue;
        rc = place_part(&out->items[out->count], p, &saved[i], base, e);
        out->count += rc == 0;
    }
    return rc;
}

/* An image of several regions was made of a VMM that had these: memory that is cut in other places
 * is another's, or its regions were named wrongly (--map), and none of it would be where it was. */
static int check_cuts(const struct image_region *saved, uint32_t n_saved,
                      const struct block_place *p, struct error *e)
{
    uint64_t start = 0;
    for (uint32_t i = 0; i < n_saved; start += saved[i].bytes, i++)
        if (p->offset == start && p->bytes == saved[i].bytes)
            return 0;
    error_set(e, VMSNAP_EXIT_MISMATCH, EINVAL,
              "the VMM has a region of %" PRIu64 " MiB at offset %" PRIu64
              " MiB of its memory, and the image has none there",
              p->bytes >> 20, p->offset >> 20);
    error_hint(e, "it is of another VM, or was made with --map of other lengths than the VMM's "
                  "regions ('vmsnap info' lists the image's)");
    return -EINVAL;
}

/* Bounded, so that no later sum wraps; together they must be the whole image. */
static int check_places(const struct image *img, const struct block_place *places, uint32_t n,
                        struct error *e)
{
    uint32_t n_saved;
    const struct image_region *saved = image_regions(img, &n_saved);
    uint64_t total = 0, placed = 0;
    for (uint32_t i = 0; i < n_saved; i++)
        total += saved[i].bytes;
    for (uint32_t i = 0; i < n; i++) {
        const struct block_place *p = &places[i];
        if (p->page_bytes == 0 || p->bytes == 0 || p->hva > UINT64_MAX - p->bytes)
            return refuse_place(p, e, "is no piece of memory");
        placed = placed > UINT64_MAX - p->bytes ? UINT64_MAX : placed + p->bytes;
    }
    if (placed != total) /* first: another image's VMM is the likely cause of all the rest */
        return refuse_size(placed, total, e);
    for (uint32_t i = 0; i < n; i++)
        if (places[i].offset > total - places[i].bytes)
            return refuse_place(&places[i], e, "does not lie within the image");
    int rc = 0;
    for (uint32_t i = 0; n_saved > 1 && i < n && rc == 0; i++)
        rc = check_cuts(saved, n_saved, &places[i], e);
    return rc;
}

static int compare_offsets(const void *a, const void *b)
{
    uint64_t x = ((const struct block *)a)->image_offset;
    uint64_t y = ((const struct block *)b)->image_offset;
    return (x > y) - (x < y);
}

/* As long as the image together and apart from each other, they cover it. Leaves them sorted. */
static int check_apart(struct blocks *b, struct error *e)
{
    qsort(b->items, b->count, sizeof(*b->items), compare_offsets);
    bool apart = true;
    for (uint32_t i = 1; i < b->count; i++)
        apart &= b->items[i].image_offset - b->items[i - 1].image_offset >= b->items[i - 1].bytes;
    qsort(b->items, b->count, sizeof(*b->items), compare_blocks);
    for (uint32_t i = 1; i < b->count; i++)
        apart &= b->items[i].region.hva - b->items[i - 1].region.hva >= b->items[i - 1].bytes;
    if (apart)
        return 0;
    return error_set(e, VMSNAP_EXIT_MISMATCH, EINVAL, "pieces of the VMM's memory overlap");
}

int blocks_place(struct blocks *out, const struct image *img, const struct block_place *places,
                 uint32_t n_places, struct error *e)
{
    uint32_t n_saved;
    image_regions(img, &n_saved);
    *out = (struct blocks){0};
    int rc = check_places(img, places, n_places, e);
    if (rc)
        return rc;
    out->items = calloc((size_t)n_places * n_saved, sizeof(*out->items));
    if (!out->items)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "no memory for the block table");
    for (uint32_t i = 0; i < n_places && rc == 0; i++)
        rc = place_one(out, img, &places[i], e);
    if (rc == 0)
        rc = check_apart(out, e);
    if (rc)
        blocks_free(out);
    return rc;
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
