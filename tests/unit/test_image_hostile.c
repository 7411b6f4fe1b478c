/*
 * Images whose checksums are right and whose contents lie: each field that a reader believes is set
 * to something impossible, and image_open() refuses by name.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/image/reader.h"
#include "tests/unit/image_sample.h"

static struct sample_memory image;

static void make_sample(void)
{
    struct error e = {0};
    cr_assert_eq(sample_in_memory(&image, &e), 0, "%s", e.message);
}

TestSuite(image_hostile, .init = make_sample, .timeout = 30);

static struct image_header *header(void)
{
    return (struct image_header *)image.bytes;
}

/* The trailer and what follows the records need not be aligned in the file: all goes by copy. */
static struct image_trailer trailer;

static uint8_t *section(enum image_section_type type)
{
    for (uint32_t i = 0; i < IMAGE_MAX_SECTIONS; i++)
        if (trailer.sections[i].type == (uint32_t)type)
            return image.bytes + trailer.sections[i].offset + 8;
    cr_assert_fail("no section %d", type);
    return NULL;
}

static void load_trailer(void)
{
    memcpy(&trailer, image.bytes + image.n_bytes - sizeof(trailer), sizeof(trailer));
}

/* Makes every checksum right again, as far as the section table makes sense. */
static void reseal(void)
{
    for (uint32_t i = 0; i < trailer.n_sections && i < IMAGE_MAX_SECTIONS; i++) {
        struct image_section *s = &trailer.sections[i];
        if (s->offset < image.n_bytes && s->bytes < image.n_bytes &&
            s->offset + 8 + s->bytes <= image.n_bytes)
            s->checksum = codec_checksum(image.bytes + s->offset, 8 + s->bytes, 0);
    }
    trailer.checksum = 0;
    trailer.checksum = codec_checksum(&trailer, sizeof(trailer), 0);
    memcpy(image.bytes + image.n_bytes - sizeof(trailer), &trailer, sizeof(trailer));
    header()->checksum = 0;
    header()->checksum = codec_checksum(header(), sizeof(*header()), 0);
}

static int open_sample(struct error *e)
{
    struct image *img = NULL;
    *e = (struct error){0};
    int r = image_open_fd(&img, dup(image.fd), "hostile", e);
    image_close(img);
    return r;
}

/* A lie: changes the image (through `trailer`, header(), section()); `says` must
 * be in the error. */
struct lie {
    const char *name, *says;
    void (*tell)(void);
};

#define LIE(function, words, ...)                                                                  \
    static void function(void)                                                                     \
    {                                                                                              \
        __VA_ARGS__;                                                                               \
    }                                                                                              \
    static const struct lie lie_##function = {#function, words, function};

/* Changes one item of a section, by copy. */
#define CHANGE(type, item_type, i, ...)                                                            \
    do {                                                                                           \
        item_type item;                                                                            \
        uint8_t *at = section(type) + (i) * sizeof(item);                                          \
        memcpy(&item, at, sizeof(item));                                                           \
        __VA_ARGS__;                                                                               \
        memcpy(at, &item, sizeof(item));                                                           \
    } while (0)
#define REGION(i, ...) CHANGE(IMAGE_SECTION_REGIONS, struct image_region, i, __VA_ARGS__)
#define GPA(i, ...) CHANGE(IMAGE_SECTION_GPA, struct image_gpa, i, __VA_ARGS__)
#define INDEX(i, ...) CHANGE(IMAGE_SECTION_INDEX, uint64_t, i, __VA_ARGS__)
#define HOT(i, ...) CHANGE(IMAGE_SECTION_HOT, struct image_hot, i, __VA_ARGS__)
#define POISON(i, ...) CHANGE(IMAGE_SECTION_POISON, struct image_poison, i, __VA_ARGS__)

LIE(newer_format, "needs a reader of version 2", header()->version = header()->compat_version = 2)
LIE(newest_format, "needs a reader", header()->version = header()->compat_version = UINT32_MAX)
LIE(compat_zero, "makes no sense", header()->compat_version = 0)
LIE(version_zero, "makes no sense", header()->version = 0)
LIE(skip_length, "makes no sense", header()->skip_bytes = 8)
LIE(skip_magic, "makes no sense", header()->skip_magic = 0)
LIE(page_size, "pages of 8192", header()->page_bytes = 8192)
LIE(cluster_size, "in clusters of 0", header()->cluster_bytes = 0)
LIE(header_reserved, "reserved", header()->reserved[4000] = 1)
LIE(other_id, "another image's", trailer.image_id[3] ^= 1)
LIE(file_longer, "its trailer says", trailer.file_bytes++)
LIE(trailer_skip, "makes no sense", trailer.skip_bytes = 16)
LIE(trailer_reserved, "reserved", trailer.reserved[5] = 1)
LIE(trailer_reserved0, "reserved", trailer.reserved0 = 1)
LIE(unused_section, "reserved", trailer.sections[IMAGE_MAX_SECTIONS - 1].type = 9)
LIE(section_reserved, "reserved", trailer.sections[2].reserved = 1)
LIE(too_many_sections, "33 sections", trailer.n_sections = IMAGE_MAX_SECTIONS + 1)
LIE(endless_sections, "4294967295 sections", trailer.n_sections = UINT32_MAX)
LIE(no_sections, "belong to no section", {
    trailer.n_sections = 0;
    memset(trailer.sections, 0, sizeof(trailer.sections));
})
LIE(records_end_low, "sections from offset 12", trailer.records_end = 12)
LIE(records_end_high, "sections from", trailer.records_end = UINT64_MAX)
LIE(records_end_off, "is said to be at", trailer.records_end += 8)
LIE(section_huge, "is said to be at", trailer.sections[6].bytes = UINT64_MAX)
LIE(section_wraps, "is said to be at", trailer.sections[0].bytes = UINT64_MAX - 7)
LIE(section_elsewhere, "is said to be at", trailer.sections[3].offset = 0)
LIE(section_twice, "two sections of type 6", trailer.sections[6].type = 6)
LIE(section_missing, "section 4 is missing",
    for (int i = 0; i < 7; i++) if (trailer.sections[i].type == IMAGE_SECTION_HOT)
        trailer.sections[i]
            .type = 99)
LIE(section_frame, "section 7 is damaged", section(IMAGE_SECTION_DESCRIPTION)[-4]++)
LIE(clusters_more, "180 clusters where the trailer says 181", trailer.n_clusters++)
LIE(clusters_endless, "the trailer says", trailer.n_clusters = UINT64_MAX)
LIE(pages_off, "do not add up", trailer.pages_zero++)
LIE(pages_wrap, "do not add up", {
    trailer.pages_zero += 1ull << 63;
    trailer.pages_stored += 1ull << 63;
})
LIE(poison_count, "listed as poisoned", {
    trailer.pages_poisoned++;
    trailer.pages_zero--;
})
LIE(region_unaligned, "impossible length", REGION(0, item.bytes++))
LIE(region_empty, "impossible length", REGION(1, item.bytes = 0))
LIE(region_endless, "impossible length", REGION(1, item.bytes = UINT64_MAX - 4095))
LIE(region_huge, "clusters that are not its own",
    REGION(2, item.bytes = item.max_bytes = 1ull << 62))
LIE(region_short, "the trailer says", REGION(2, item.bytes -= 16384))
LIE(region_maximum, "a maximum below", REGION(0, item.max_bytes = 4096))
LIE(region_overlaps, "not its own", REGION(1, item.first_cluster--))
LIE(region_gap, "not its own", REGION(2, item.first_cluster++))
LIE(region_pages, "page size", REGION(0, item.page_bytes = 12288))
LIE(region_pages_small, "page size", REGION(0, item.page_bytes = 2048))
LIE(region_pages_zero, "page size", REGION(0, item.page_bytes = 0))
LIE(region_kind, "unknown kind", REGION(0, item.kind = 4))
LIE(region_flags, "reserved", REGION(0, item.flags = 1))
LIE(region_reserved, "reserved", REGION(0, item.reserved[7] = 1))
LIE(region_unnamed, "a name", REGION(0, item.name_bytes = 0))
LIE(region_name_long, "a name", REGION(0, item.name_bytes = 256))
LIE(region_name_tail, "a name", REGION(0, item.name[200] = 'x'))
LIE(region_name_escape, "a name", REGION(0, item.name[0] = '\033'))
LIE(region_name_zero, "a name", REGION(0, item.name[1] = 0))
LIE(region_name_twice, "two regions are named zeros", REGION(1, {
        memset(item.name, 0, sizeof(item.name));
        memcpy(item.name, "zeros", item.name_bytes = 5);
    }))
LIE(gpa_region, "outside its region", GPA(1, item.region = 3))
LIE(gpa_long, "outside its region", GPA(1, item.bytes = 8192))
LIE(gpa_offset, "outside its region", GPA(2, item.offset = UINT64_MAX - 4095))
LIE(gpa_empty, "does not follow", GPA(0, item.bytes = 0))
LIE(gpa_order, "does not follow", GPA(2, item.gpa = 0x100000))
LIE(gpa_wraps, "does not follow", GPA(2, item.gpa = UINT64_MAX - 4095))
LIE(gpa_flags, "unknown flag", GPA(1, item.flags = 3))
LIE(index_missing, "cluster 5", INDEX(5, item = IMAGE_INDEX_MISSING))
LIE(index_zero_like, "cluster 5", INDEX(5, item = 2))
LIE(index_in_header, "cluster 5", INDEX(5, item = IMAGE_INDEX(4088, 100)))
LIE(index_empty_frame, "cluster 5", INDEX(5, item = IMAGE_INDEX(4096, 0)))
LIE(index_long_frame, "cluster 5", INDEX(5, item = IMAGE_INDEX(4096, IMAGE_FRAME_MAX + 1)))
LIE(index_past_end, "cluster 5", INDEX(5, item = IMAGE_INDEX(trailer.records_end - 100, 100)))
LIE(index_far, "cluster 5", INDEX(5, item = UINT64_MAX << 16 | 100))
LIE(hot_cluster, "hot list entry 1", HOT(1, item.cluster = 180))
LIE(hot_cluster_far, "hot list entry 1", HOT(1, item.cluster = UINT64_MAX))
LIE(hot_nothing, "hot list entry 0", HOT(0, item.written = 0))
LIE(hot_pages, "hot list entry 0", HOT(0, item.written = 16))
LIE(hot_short_cluster, "hot list entry 0", HOT(0, {
        item.cluster = 50;
        item.written = 8;
    }))
LIE(poison_cluster, "poison list entry 0", POISON(0, item.cluster = 1ull << 40))
LIE(poison_pages, "poison list entry 0", POISON(0, item.pages = 1ull << 63))
LIE(description_cut, "a zero byte", section(IMAGE_SECTION_DESCRIPTION)[3] = 0)

static const struct lie *const lies[] = {
    &lie_newer_format,      &lie_newest_format,     &lie_compat_zero,        &lie_version_zero,
    &lie_skip_length,       &lie_skip_magic,        &lie_page_size,          &lie_cluster_size,
    &lie_header_reserved,   &lie_other_id,          &lie_file_longer,        &lie_trailer_skip,
    &lie_trailer_reserved,  &lie_trailer_reserved0, &lie_unused_section,     &lie_section_reserved,
    &lie_too_many_sections, &lie_endless_sections,  &lie_no_sections,        &lie_records_end_low,
    &lie_records_end_high,  &lie_records_end_off,   &lie_section_huge,       &lie_section_wraps,
    &lie_section_elsewhere, &lie_section_twice,     &lie_section_missing,    &lie_section_frame,
    &lie_clusters_more,     &lie_clusters_endless,  &lie_pages_off,          &lie_pages_wrap,
    &lie_poison_count,      &lie_region_unaligned,  &lie_region_empty,       &lie_region_endless,
    &lie_region_huge,       &lie_region_short,      &lie_region_maximum,     &lie_region_overlaps,
    &lie_region_gap,        &lie_region_pages,      &lie_region_pages_small, &lie_region_pages_zero,
    &lie_region_kind,       &lie_region_flags,      &lie_region_reserved,    &lie_region_unnamed,
    &lie_region_name_long,  &lie_region_name_tail,  &lie_region_name_escape, &lie_region_name_zero,
    &lie_region_name_twice, &lie_gpa_region,        &lie_gpa_long,           &lie_gpa_offset,
    &lie_gpa_empty,         &lie_gpa_order,         &lie_gpa_wraps,          &lie_gpa_flags,
    &lie_index_missing,     &lie_index_zero_like,   &lie_index_in_header,    &lie_index_empty_frame,
    &lie_index_long_frame,  &lie_index_past_end,    &lie_index_far,          &lie_hot_cluster,
    &lie_hot_cluster_far,   &lie_hot_nothing,       &lie_hot_pages,          &lie_hot_short_cluster,
    &lie_poison_cluster,    &lie_poison_pages,      &lie_description_cut,
};

Test(image_hostile, resealing_makes_a_good_image)
{
    struct error e;
    load_trailer();
    reseal();
    cr_assert_eq(open_sample(&e), 0, "%s", e.message);
}

Test(image_hostile, every_lie_is_refused_by_name)
{
    static uint8_t good[1 << 20];
    cr_assert_leq(image.n_bytes, sizeof(good));
    memcpy(good, image.bytes, image.n_bytes);
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        struct error e;
        load_trailer();
        lies[i]->tell();
        reseal();
        cr_expect_lt(open_sample(&e), 0, "%s was believed", lies[i]->name);
        cr_expect_eq(e.exit_code, VMSNAP_EXIT_IMAGE, "%s: %s", lies[i]->name, e.message);
        cr_expect_not_null(strstr(e.message, lies[i]->says), "%s: %s", lies[i]->name, e.message);
        cr_expect_not_null(strstr(e.message, "at file offset"), "%s: %s", lies[i]->name, e.message);
        memcpy(image.bytes, good, image.n_bytes);
    }
}

/* What a later version may do without a new compat_version: reserved fields, unknown sections and
 * flags are passed over. */
Test(image_hostile, additions_of_a_compatible_format_are_passed_over)
{
    struct error e;
    load_trailer();
    header()->version = 2;
    header()->reserved[0] = 1;
    trailer.reserved[0] = 1;
    REGION(0, item.flags = 1);
    GPA(1, item.flags = 3);
    reseal();
    cr_assert_eq(open_sample(&e), 0, "%s", e.message);
}

/* ---- records that lie ---- */

/* Puts a record of our own making where cluster 0's stands, sealed with the right checksum. */
static void replace_record(uint64_t at, uint64_t cluster, const void *frame, uint32_t frame_bytes)
{
    struct image_record r = {.skip_magic = IMAGE_SKIP_RECORD, .skip_bytes = 16, .cluster = cluster};
    static uint8_t buf[sizeof(struct image_record) + 2 * IMAGE_FRAME_MAX];
    uint64_t seed;
    memcpy(&seed, header()->image_id, sizeof(seed));
    memcpy(buf, &r, sizeof(r));
    memcpy(buf + sizeof(r), frame, frame_bytes);
    r.checksum = codec_checksum(buf + 16, 8 + frame_bytes, seed);
    memcpy(buf, &r, sizeof(r));
    memcpy(image.bytes + at, buf, sizeof(r) + frame_bytes);
}

/* Reads cluster 0 of the image as it stands: must be refused, and nothing written behind `out`. */
static void cluster_0_is_refused(const char *says)
{
    struct image *img;
    struct error e = {0};
    uint8_t out[IMAGE_CLUSTER_BYTES + 64];
    struct codec *codec = codec_new(1);
    memset(out, 0x5a, sizeof(out));
    cr_assert_eq(image_open_fd(&img, dup(image.fd), "hostile", &e), 0, "%s", e.message);
    cr_assert_lt(image_read_cluster(img, 0, codec, out, &e), 0);
    cr_assert_eq(e.exit_code, VMSNAP_EXIT_IMAGE);
    cr_assert_not_null(strstr(e.message, says), "%s", e.message);
    for (size_t i = IMAGE_CLUSTER_BYTES; i < sizeof(out); i++)
        cr_assert_eq(out[i], 0x5a);
    struct image_verify_result result;
    struct image_verify_calls calls = {0};
    cr_assert_lt(image_verify(img, 2, &calls, &result, &e), 0);
    codec_free(codec);
    image_close(img);
}

/* Lets the index say that cluster 0 is `frame_bytes` at the place of the superseded record (the
 * first of the file; it and what follows have room). */
static void point_cluster_0(uint32_t frame_bytes)
{
    load_trailer();
    INDEX(0, item = IMAGE_INDEX(sizeof(struct image_header), frame_bytes));
    reseal();
}

static uint8_t frame[2 * IMAGE_FRAME_MAX];

static uint32_t make_frame(size_t len, uint8_t fill)
{
    static uint8_t plain[IMAGE_CLUSTER_BYTES];
    struct codec *codec = codec_new(1);
    memset(plain, fill, sizeof(plain));
    int n = codec_encode(codec, plain, len, frame);
    cr_assert_gt(n, 0);
    codec_free(codec);
    return (uint32_t)n;
}

Test(image_hostile, a_record_of_another_cluster)
{
    uint32_t n = make_frame(IMAGE_CLUSTER_BYTES, 1);
    replace_record(sizeof(struct image_header), 1, frame, n);
    point_cluster_0(n);
    cluster_0_is_refused("another cluster's record");
}

Test(image_hostile, a_frame_that_is_too_short)
{
    uint32_t n = make_frame(IMAGE_CLUSTER_BYTES - 1, 1);
    replace_record(sizeof(struct image_header), 0, frame, n);
    point_cluster_0(n);
    cluster_0_is_refused("does not decode");
}

Test(image_hostile, two_frames_in_a_row)
{
    uint32_t n = make_frame(IMAGE_CLUSTER_BYTES / 2, 1);
    memcpy(frame + n, frame, n);
    replace_record(sizeof(struct image_header), 0, frame, 2 * n);
    point_cluster_0(2 * n);
    cluster_0_is_refused("does not decode");
}

Test(image_hostile, a_frame_with_a_tail)
{
    uint32_t n = make_frame(IMAGE_CLUSTER_BYTES, 1);
    replace_record(sizeof(struct image_header), 0, frame, n + 5);
    point_cluster_0(n + 5);
    cluster_0_is_refused("does not decode");
}

Test(image_hostile, a_skippable_frame)
{
    const uint32_t skippable[4] = {IMAGE_SKIP_RECORD, 8, 0, 0};
    replace_record(sizeof(struct image_header), 0, skippable, sizeof(skippable));
    point_cluster_0(sizeof(skippable));
    cluster_0_is_refused("does not decode");
}

/* A frame of 20 bytes that says it holds a gigabyte of one byte. */
Test(image_hostile, a_frame_that_decodes_to_a_gigabyte)
{
    uint8_t *p = frame;
    const uint8_t head[] = {0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 0x40};
    memcpy(p, head, sizeof(head));
    p += sizeof(head);
    for (unsigned i = 0; i < 2000; i++) { /* RLE blocks of 128 KiB */
        uint32_t block = (uint32_t)(i == 1999) | 1u << 1 | 131072u << 3;
        memcpy(p, &block, 3);
        p[3] = 'A';
        p += 4;
    }
    uint32_t n = (uint32_t)(p - frame);
    replace_record(sizeof(struct image_header), 0, frame, n);
    point_cluster_0(n);
    cluster_0_is_refused("does not decode");
}
