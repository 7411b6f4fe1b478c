/*
 * writer.c - header, cluster records as they come, then sections and trailer.
 *
 * The index is an array of atomic words, one per cluster, written with plain stores by whichever
 * thread adds the cluster: no lock but the sink's. What the totals need (how many pages of a
 * cluster are stored) is a byte per cluster beside it, so that a cluster that is added again simply
 * replaces both; the totals are summed up at the end.
 */
#include "common/image/writer.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "common/codec.h"

struct image_writer {
    struct sink *sink;
    struct image_region *regions;
    uint32_t n_regions;
    uint64_t n_clusters;
    uint64_t pages_total;
    _Atomic uint64_t *index;
    _Atomic uint8_t *stored; /* pages of the cluster that are not zero */
    struct image_header header;
    struct image_trailer trailer;
    struct image_totals totals;
};

/* A version 4 UUID (RFC 9562). */
static int make_id(uint8_t id[16])
{
    if (getrandom(id, 16, 0) != 16)
        return -EIO;
    id[6] = (uint8_t)((id[6] & 0x0f) | 0x40);
    id[8] = (uint8_t)((id[8] & 0x3f) | 0x80);
    return 0;
}

static uint64_t record_seed(const struct image_writer *w)
{
    uint64_t seed;
    memcpy(&seed, w->header.image_id, sizeof(seed));
    return seed;
}

static bool name_is_good(const char *name)
{
    size_t len = strnlen(name, REGION_NAME_MAX);
    for (size_t i = 0; i < len; i++)
        if (name[i] < 0x20 || name[i] > 0x7e)
            return false;
    return len > 0 && len < REGION_NAME_MAX;
}

/* A huge page of more than 2 GiB would not fit the field; no architecture that
 * QEMU runs on has it. */
static bool page_size_is_good(uint64_t page_bytes)
{
    return page_bytes >= IMAGE_PAGE_BYTES && page_bytes <= 1u << 31 &&
           (page_bytes & (page_bytes - 1)) == 0;
}

static int fill_region(struct image_writer *w, uint32_t i, const struct region *from)
{
    struct image_region *to = &w->regions[i];
    uint64_t max_bytes = from->max_bytes ? from->max_bytes : from->bytes;
    if (!name_is_good(from->name) || from->bytes == 0 || from->bytes % IMAGE_PAGE_BYTES != 0 ||
        max_bytes < from->bytes || from->bytes > UINT64_MAX / 2 ||
        !page_size_is_good(from->page_bytes) || from->kind < REGION_ANON ||
        from->kind > REGION_PRIVATE_FILE)
        return -EINVAL;
    for (uint32_t j = 0; j < i; j++)
        if (strcmp(w->regions[j].name, from->name) == 0)
            return -EINVAL;
    *to = (struct image_region){.bytes = from->bytes,
                                .max_bytes = max_bytes,
                                .first_cluster = w->n_clusters,
                                .page_bytes = (uint32_t)from->page_bytes,
                                .kind = (uint32_t)from->kind,
                                .name_bytes = (uint32_t)strlen(from->name)};
    memcpy(to->name, from->name, to->name_bytes);
    w->n_clusters += (from->bytes + IMAGE_CLUSTER_BYTES - 1) / IMAGE_CLUSTER_BYTES;
    w->pages_total += from->bytes / IMAGE_PAGE_BYTES;
    return 0;
}

static int fill_regions(struct image_writer *w, const struct region *regions, uint32_t n,
                        struct error *e)
{
    if (n == 0 || n > IMAGE_MAX_REGIONS)
        return error_set(e, VMSNAP_EXIT_FAILED, EINVAL, "%u memory regions", n);
    w->regions = calloc(n, sizeof(*w->regions));
    if (!w->regions)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "region table");
    w->n_regions = n;
    for (uint32_t i = 0; i < n; i++) {
        int r = fill_region(w, i, &regions[i]);
        if (r < 0)
            return error_set(e, VMSNAP_EXIT_FAILED, -r,
                             "region '%.255s' of %llu bytes can't stand in an image",
                             regions[i].name, (unsigned long long)regions[i].bytes);
    }
    /* The index is one section, whose length is 32 bits wide: said now, not at the end. */
    if (w->n_clusters > UINT32_MAX / sizeof(*w->index))
        return error_set(e, VMSNAP_EXIT_FAILED, EFBIG, "%llu bytes of memory: an image holds 8 TiB",
                         (unsigned long long)w->pages_total * IMAGE_PAGE_BYTES);
    w->index = calloc(w->n_clusters, sizeof(*w->index));
    w->stored = calloc(w->n_clusters, sizeof(*w->stored));
    if (!w->index || !w->stored)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "index of %llu clusters",
                         (unsigned long long)w->n_clusters);
    return 0;
}

static int append_header(struct image_writer *w, struct error *e)
{
    struct image_header *h = &w->header;
    *h = (struct image_header){.skip_magic = IMAGE_SKIP_HEADER,
                               .skip_bytes = sizeof(*h) - 8,
                               .magic = IMAGE_HEADER_MAGIC,
                               .version = IMAGE_VERSION,
                               .compat_version = IMAGE_COMPAT_VERSION,
                               .page_bytes = IMAGE_PAGE_BYTES,
                               .cluster_bytes = IMAGE_CLUSTER_BYTES};
    int r = make_id(h->image_id);
    if (r < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, -r, "random image id");
    h->checksum = codec_checksum(h, sizeof(*h), 0);
    r = sink_append(w->sink, h, sizeof(*h), NULL);
    return r < 0 ? sink_error(w->sink, e) : 0;
}

int image_writer_open(struct image_writer **out, struct sink *sink, const struct region *regions,
                      uint32_t n_regions, struct error *e)
{
    struct image_writer *w = calloc(1, sizeof(*w));
    if (!w)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "image writer");
    w->sink = sink;
    int r = fill_regions(w, regions, n_regions, e);
    if (r == 0)
        r = append_header(w, e);
    if (r < 0) {
        image_writer_close(w);
        return r;
    }
    *out = w;
    return 0;
}

uint64_t image_writer_cluster(const struct image_writer *w, uint32_t region, uint64_t offset)
{
    return w->regions[region].first_cluster + offset / IMAGE_CLUSTER_BYTES;
}

uint64_t image_writer_n_clusters(const struct image_writer *w)
{
    return w->n_clusters;
}

const uint8_t *image_writer_id(const struct image_writer *w)
{
    return w->header.image_id;
}

int image_writer_add(struct image_writer *w, uint64_t cluster, void *record, uint32_t frame_bytes,
                     unsigned pages_stored)
{
    assert(cluster < w->n_clusters && frame_bytes > 0 && frame_bytes <= IMAGE_FRAME_MAX);
    struct image_record *prefix = record;
    *prefix = (struct image_record){
        .skip_magic = IMAGE_SKIP_RECORD, .skip_bytes = sizeof(*prefix) - 8, .cluster = cluster};
    prefix->checksum =
        codec_checksum(&prefix->cluster, sizeof(prefix->cluster) + frame_bytes, record_seed(w));
    uint64_t offset;
    int r = sink_append(w->sink, record, sizeof(*prefix) + frame_bytes, &offset);
    if (r < 0)
        return r;
    atomic_store_explicit(&w->index[cluster], IMAGE_INDEX(offset, frame_bytes),
                          memory_order_relaxed);
    atomic_store_explicit(&w->stored[cluster], (uint8_t)pages_stored, memory_order_relaxed);
    return 0;
}

void image_writer_add_zero(struct image_writer *w, uint64_t cluster)
{
    assert(cluster < w->n_clusters);
    atomic_store_explicit(&w->index[cluster], IMAGE_INDEX_ZERO, memory_order_relaxed);
    atomic_store_explicit(&w->stored[cluster], 0, memory_order_relaxed);
}

/* ---- the end of the image ---- */

/* Appends one section as a skippable frame and enters it in the trailer. */
static int append_section(struct image_writer *w, enum image_section_type type, const void *data,
                          uint64_t bytes, struct error *e)
{
    struct image_trailer *t = &w->trailer;
    if (bytes > UINT32_MAX)
        return error_set(e, VMSNAP_EXIT_FAILED, EFBIG, "section %d of %llu bytes", type,
                         (unsigned long long)bytes);
    uint32_t prefix[2] = {IMAGE_SKIP_SECTION, (uint32_t)bytes};
    struct image_section *section = &t->sections[t->n_sections++];
    *section =
        (struct image_section){.type = (uint32_t)type,
                               .offset = sink_offset(w->sink),
                               .bytes = bytes,
                               .checksum = codec_checksum2(prefix, sizeof(prefix), data, bytes)};
    int r = sink_append(w->sink, prefix, sizeof(prefix), NULL);
    if (r == 0)
        r = sink_append(w->sink, data, bytes, NULL);
    return r < 0 ? sink_error(w->sink, e) : 0;
}

static int append_gpa(struct image_writer *w, const struct image_finish *f, struct error *e)
{
    struct image_gpa *table = calloc(f->n_gpa ? f->n_gpa : 1, sizeof(*table));
    if (!table)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "GPA table");
    for (uint32_t i = 0; i < f->n_gpa; i++)
        table[i] = (struct image_gpa){.gpa = f->gpa[i].gpa,
                                      .bytes = f->gpa[i].bytes,
                                      .offset = f->gpa[i].offset,
                                      .region = f->gpa[i].region,
                                      .flags = f->gpa[i].flags};
    int r = append_section(w, IMAGE_SECTION_GPA, table, f->n_gpa * sizeof(*table), e);
    free(table);
    return r;
}

/* Sums the totals up; refuses to finish an image that lacks a cluster. */
static int count_pages(struct image_writer *w, const struct image_finish *f, struct error *e)
{
    struct image_totals *t = &w->totals;
    *t = (struct image_totals){.pages_total = w->pages_total};
    for (uint64_t c = 0; c < w->n_clusters; c++) {
        if (w->index[c] == IMAGE_INDEX_MISSING)
            return error_set(e, VMSNAP_EXIT_FAILED, EINVAL, "cluster %llu was never saved",
                             (unsigned long long)c);
        t->pages_stored += w->stored[c];
    }
    for (uint64_t i = 0; i < f->n_poison; i++)
        t->pages_poisoned += (unsigned)__builtin_popcountll(f->poison[i].pages);
    if (t->pages_stored + t->pages_poisoned > t->pages_total)
        return error_set(e, VMSNAP_EXIT_FAILED, EINVAL,
                         "%llu pages stored and %llu poisoned of %llu",
                         (unsigned long long)t->pages_stored, (unsigned long long)t->pages_poisoned,
                         (unsigned long long)t->pages_total);
    t->pages_zero = t->pages_total - t->pages_stored - t->pages_poisoned;
    return 0;
}

static int append_sections(struct image_writer *w, const struct image_finish *f, struct error *e)
{
    const struct {
        enum image_section_type type;
        const void *data;
        uint64_t bytes;
    } sections[] = {
        {IMAGE_SECTION_REGIONS, w->regions, w->n_regions * sizeof(*w->regions)},
        {IMAGE_SECTION_INDEX, w->index, w->n_clusters * sizeof(*w->index)},
        {IMAGE_SECTION_HOT, f->hot, f->n_hot * sizeof(*f->hot)},
        {IMAGE_SECTION_POISON, f->poison, f->n_poison * sizeof(*f->poison)},
        {IMAGE_SECTION_DEVICE_STATE, f->device_state, f->device_state_bytes},
        {IMAGE_SECTION_DESCRIPTION, f->description, strlen(f->description)},
    };
    int r = append_gpa(w, f, e);
    for (size_t i = 0; i < sizeof(sections) / sizeof(sections[0]) && r == 0; i++)
        r = append_section(w, sections[i].type, sections[i].data, sections[i].bytes, e);
    return r;
}

static int append_trailer(struct image_writer *w, const struct image_finish *f, struct error *e)
{
    struct image_trailer *t = &w->trailer;
    t->file_bytes = sink_offset(w->sink) + sizeof(*t);
    t->instant_ns = f->instant_ns;
    t->n_clusters = w->n_clusters;
    t->pages_zero = w->totals.pages_zero;
    t->pages_stored = w->totals.pages_stored;
    t->pages_poisoned = w->totals.pages_poisoned;
    t->pages_from_faults = f->pages_from_faults;
    t->checksum = codec_checksum(t, sizeof(*t), 0);
    int r = sink_append(w->sink, t, sizeof(*t), NULL);
    w->totals.image_bytes = t->file_bytes;
    return r < 0 ? sink_error(w->sink, e) : 0;
}

int image_writer_finish(struct image_writer *w, const struct image_finish *f, struct error *e)
{
    struct image_trailer *t = &w->trailer;
    *t = (struct image_trailer){.skip_magic = IMAGE_SKIP_TRAILER,
                                .skip_bytes = sizeof(*t) - 8,
                                .magic = IMAGE_TRAILER_MAGIC,
                                .records_end = sink_offset(w->sink)};
    memcpy(t->image_id, w->header.image_id, sizeof(t->image_id));
    int r = count_pages(w, f, e);
    if (r == 0)
        r = append_sections(w, f, e);
    return r < 0 ? r : append_trailer(w, f, e);
}

void image_writer_totals(const struct image_writer *w, struct image_totals *totals)
{
    *totals = w->totals;
}

void image_writer_close(struct image_writer *w)
{
    if (!w)
        return;
    free(w->regions);
    free((void *)w->index);
    free((void *)w->stored);
    free(w);
}
