/*
 * check.c - what of an image may be believed. A file can be truncated, rotten, or made by
 * somebody who wants us to crash: every field is compared with what the fields before it, and in
 * the end the size of the file, allow. docs/format.md, "What a reader checks", is this file in
 * words.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/image/internal.h"
#include "common/target/region.h"

static bool all_zero(const void *buf, size_t len)
{
    return codec_is_zero(buf, len);
}

static int newer_format(const struct image *img, struct error *e)
{
    int r = image_damaged(img, e, offsetof(struct image_header, compat_version),
                          "image format version %u needs a reader of version %u or later, this "
                          "vmsnap reads up to version %u",
                          img->header.version, img->header.compat_version, IMAGE_VERSION);
    error_hint(e, "use a newer vmsnap");
    return r;
}

int image_check_header(struct image *img, struct error *e)
{
    const struct image_header *h = &img->header;
    struct image_header plain = *h;
    plain.checksum = 0;
    if (h->compat_version > IMAGE_VERSION)
        return newer_format(img, e);
    if (codec_checksum(&plain, sizeof(plain), 0) != h->checksum)
        return image_damaged(img, e, 0, "the header is damaged");
    img->strict = h->version <= IMAGE_VERSION;
    if (h->skip_magic != IMAGE_SKIP_HEADER || h->skip_bytes != sizeof(*h) - 8 ||
        h->compat_version == 0 || h->version < h->compat_version)
        return image_damaged(img, e, 0, "the header makes no sense");
    if (h->page_bytes != IMAGE_PAGE_BYTES || h->cluster_bytes != IMAGE_CLUSTER_BYTES)
        return image_damaged(img, e, offsetof(struct image_header, page_bytes),
                             "pages of %u bytes in clusters of %u", h->page_bytes,
                             h->cluster_bytes);
    if (img->strict && !all_zero(h->reserved, sizeof(h->reserved)))
        return image_damaged(img, e, offsetof(struct image_header, reserved),
                             "a reserved field of the header is not zero");
    return 0;
}

/* Sections lie one behind the other from the end of the records to the trailer, without a gap. */
static int check_section_table(const struct image *img, uint64_t trailer_at, struct error *e)
{
    const struct image_trailer *t = &img->trailer;
    uint64_t at = t->records_end;
    if (at < sizeof(img->header) || at > trailer_at || t->n_sections > IMAGE_MAX_SECTIONS)
        return image_damaged(img, e, trailer_at, "%u sections from offset %llu on", t->n_sections,
                             (unsigned long long)at);
    for (uint32_t i = 0; i < t->n_sections; i++) {
        const struct image_section *s = &t->sections[i];
        if (s->offset != at || trailer_at - at < 8 || s->bytes > trailer_at - at - 8 ||
            s->bytes > UINT32_MAX)
            return image_damaged(img, e, trailer_at,
                                 "section %u is said to be at %llu with %llu "
                                 "bytes",
                                 s->type, (unsigned long long)s->offset,
                                 (unsigned long long)s->bytes);
        if (img->strict && s->reserved != 0)
            return image_damaged(img, e, trailer_at, "a reserved field of section %u is not zero",
                                 s->type);
        for (uint32_t j = 0; j < i; j++)
            if (t->sections[j].type == s->type)
                return image_damaged(img, e, trailer_at, "two sections of type %u", s->type);
        at += 8 + s->bytes;
    }
    if (at != trailer_at)
        return image_damaged(img, e, at, "bytes that belong to no section");
    return 0;
}

int image_check_trailer(const struct image *img, struct error *e)
{
    const struct image_trailer *t = &img->trailer;
    const uint64_t at = img->file_bytes - sizeof(*t);
    struct image_trailer plain = *t;
    plain.checksum = 0;
    if (memcmp(t->magic, IMAGE_TRAILER_MAGIC, 8) != 0 ||
        codec_checksum(&plain, sizeof(plain), 0) != t->checksum) {
        int r = image_damaged(img, e, at, "the image is truncated or its end is damaged");
        error_hint(e, "no valid trailer: copy the file again, or take another snapshot");
        return r;
    }
    if (t->skip_magic != IMAGE_SKIP_TRAILER || t->skip_bytes != sizeof(*t) - 8)
        return image_damaged(img, e, at, "the trailer makes no sense");
    if (memcmp(t->image_id, img->header.image_id, sizeof(t->image_id)) != 0)
        return image_damaged(img, e, at, "the trailer is another image's");
    if (t->file_bytes != img->file_bytes)
        return image_damaged(img, e, at, "the file has %llu bytes, its trailer says %llu",
                             (unsigned long long)img->file_bytes,
                             (unsigned long long)t->file_bytes);
    if (img->strict && (t->reserved0 != 0 || !all_zero(t->reserved, sizeof(t->reserved)) ||
                        (t->n_sections <= IMAGE_MAX_SECTIONS &&
                         !all_zero(&t->sections[t->n_sections],
                                   (IMAGE_MAX_SECTIONS - t->n_sections) * sizeof(*t->sections)))))
        return image_damaged(img, e, at, "a reserved field of the trailer is not zero");
    return check_section_table(img, at, e);
}

/* ---- regions ---- */

static bool name_is_good(const struct image_region *r)
{
    if (r->name_bytes == 0 || r->name_bytes >= sizeof(r->name))
        return false;
    for (uint32_t i = 0; i < r->name_bytes; i++)
        if (r->name[i] < 0x20 || r->name[i] > 0x7e)
            return false;
    return all_zero(r->name + r->name_bytes, sizeof(r->name) - r->name_bytes);
}

/* What is wrong with one region, or NULL. */
static const char *region_fault(const struct image *img, const struct image_region *r)
{
    if (!name_is_good(r))
        return "a name that is empty, too long or not printable";
    if (r->bytes == 0 || r->bytes % IMAGE_PAGE_BYTES != 0 || r->bytes > UINT64_MAX / 2)
        return "an impossible length";
    if (r->max_bytes < r->bytes)
        return "a maximum below its length";
    if (r->page_bytes < IMAGE_PAGE_BYTES || (r->page_bytes & (r->page_bytes - 1)) != 0)
        return "an impossible page size";
    if (r->kind < REGION_ANON || r->kind > REGION_PRIVATE_FILE)
        return "an unknown kind of memory";
    if (img->strict && (r->flags != 0 || !all_zero(r->reserved, sizeof(r->reserved))))
        return "a reserved field that is not zero";
    return NULL;
}

static int by_name(const void *a, const void *b)
{
    const struct image_region *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static int check_names_differ(const struct image *img, struct error *e)
{
    const struct image_region **sorted = malloc(img->n_regions * sizeof(*sorted));
    if (!sorted)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "%s", img->name);
    for (uint32_t i = 0; i < img->n_regions; i++)
        sorted[i] = &img->regions[i];
    qsort(sorted, img->n_regions, sizeof(*sorted), by_name);
    int r = 0;
    for (uint32_t i = 1; i < img->n_regions && r == 0; i++)
        if (strcmp(sorted[i - 1]->name, sorted[i]->name) == 0)
            r = image_damaged(img, e, image_section_offset(img, IMAGE_SECTION_REGIONS, 0),
                              "two regions are named %s", sorted[i]->name);
    free(sorted);
    return r;
}

/* Regions share the cluster numbers out without gap or overlap, to exactly n_clusters, and the
 * trailer's page counts add up. */
int image_check_regions(const struct image *img, struct error *e)
{
    const struct image_trailer *t = &img->trailer;
    uint64_t next_cluster = 0, pages = 0;
    for (uint32_t i = 0; i < img->n_regions; i++) {
        const struct image_region *r = &img->regions[i];
        const char *fault = region_fault(img, r);
        uint64_t n = r->bytes / IMAGE_CLUSTER_BYTES + (r->bytes % IMAGE_CLUSTER_BYTES != 0);
        if (!fault && (r->first_cluster != next_cluster || n > t->n_clusters - next_cluster))
            fault = "clusters that are not its own";
        if (fault)
            return image_damaged(img, e,
                                 image_section_offset(img, IMAGE_SECTION_REGIONS, i * sizeof(*r)),
                                 "region %u has %s", i, fault);
        next_cluster += n;
        pages += r->bytes / IMAGE_PAGE_BYTES;
    }
    if (next_cluster != t->n_clusters)
        return image_damaged(img, e, image_section_offset(img, IMAGE_SECTION_REGIONS, 0),
                             "regions of %llu clusters, the trailer says %llu",
                             (unsigned long long)next_cluster, (unsigned long long)t->n_clusters);
    if (t->pages_zero > pages || t->pages_stored > pages - t->pages_zero ||
        t->pages_poisoned != pages - t->pages_zero - t->pages_stored)
        return image_damaged(img, e, img->file_bytes - sizeof(*t),
                             "the trailer's page counts do not add up to %llu",
                             (unsigned long long)pages);
    return check_names_differ(img, e);
}

int image_check_gpa(const struct image *img, struct error *e)
{
    uint64_t end = 0;
    for (uint64_t i = 0; i < img->n_gpa; i++) {
        const struct image_gpa *g = &img->gpa[i];
        const char *fault = NULL;
        if (g->bytes == 0 || g->gpa < end || g->bytes > UINT64_MAX - g->gpa)
            fault = "does not follow the one before it";
        else if (g->region >= img->n_regions || g->offset > img->regions[g->region].bytes ||
                 g->bytes > img->regions[g->region].bytes - g->offset)
            fault = "lies outside its region";
        else if (img->strict && (g->flags & ~GPA_ROM) != 0)
            fault = "has an unknown flag";
        if (fault)
            return image_damaged(img, e,
                                 image_section_offset(img, IMAGE_SECTION_GPA, i * sizeof(*g)),
                                 "guest-physical range %llu %s", (unsigned long long)i, fault);
        end = g->gpa + g->bytes;
    }
    return 0;
}

/* Every entry is "zero", or a record of a possible length that lies among the records. */
int image_check_index(const struct image *img, struct error *e)
{
    const uint64_t end = img->trailer.records_end;
    for (uint64_t c = 0; c < img->trailer.n_clusters; c++) {
        uint64_t entry = img->index[c], offset = IMAGE_INDEX_OFFSET(entry);
        uint32_t frame_bytes = IMAGE_INDEX_BYTES(entry);
        if (entry == IMAGE_INDEX_ZERO)
            continue;
        if (offset < sizeof(img->header) || frame_bytes == 0 || frame_bytes > IMAGE_FRAME_MAX ||
            offset > end || end - offset < sizeof(struct image_record) + frame_bytes)
            return image_damaged(img, e,
                                 image_section_offset(img, IMAGE_SECTION_INDEX, c * sizeof(entry)),
                                 "cluster %llu is said to be %u bytes at %llu",
                                 (unsigned long long)c, frame_bytes, (unsigned long long)offset);
    }
    return 0;
}

/* True when `mask` names at least one page and none that the cluster does not have. */
static bool mask_is_good(const struct image *img, uint64_t cluster, uint64_t mask)
{
    if (cluster >= img->trailer.n_clusters || mask == 0)
        return false;
    return mask >> (image_cluster_bytes(img, cluster) / IMAGE_PAGE_BYTES) == 0;
}

int image_check_hot(const struct image *img, struct error *e)
{
    for (uint64_t i = 0; i < img->n_hot; i++)
        if (!mask_is_good(img, img->hot[i].cluster, img->hot[i].written))
            return image_damaged(
                img, e, image_section_offset(img, IMAGE_SECTION_HOT, i * sizeof(*img->hot)),
                "hot list entry %llu names pages that do not exist", (unsigned long long)i);
    return 0;
}

int image_check_poison(const struct image *img, struct error *e)
{
    uint64_t pages = 0;
    for (uint64_t i = 0; i < img->n_poison; i++) {
        const struct image_poison *p = &img->poison[i];
        if (!mask_is_good(img, p->cluster, p->pages) ||
            (i > 0 && p->cluster <= img->poison[i - 1].cluster))
            return image_damaged(
                img, e, image_section_offset(img, IMAGE_SECTION_POISON, i * sizeof(*p)),
                "poison list entry %llu names pages that do not exist, or is out of order",
                (unsigned long long)i);
        pages += (unsigned)__builtin_popcountll(p->pages);
    }
    if (pages != img->trailer.pages_poisoned)
        return image_damaged(img, e, image_section_offset(img, IMAGE_SECTION_POISON, 0),
                             "%llu pages are listed as poisoned, the trailer says %llu",
                             (unsigned long long)pages,
                             (unsigned long long)img->trailer.pages_poisoned);
    return 0;
}
