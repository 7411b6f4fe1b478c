/*
 * fuzz_image.c - image_open(), every cluster, image_verify() and the tables, on whatever bytes
 * come.
 *
 * Checksums would keep a fuzzer out at the first step. So each input is tried as it is, and once
 * more with all checksums made right: that is what a hostile writer would do. The target for
 * libFuzzer; replay.c runs the corpus through the same function without it.
 */
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/image/reader.h"

static uint64_t n_opened;

uint64_t fuzz_accepted(void)
{
    return n_opened;
}

static bool has_room(size_t size, uint64_t offset, uint64_t bytes)
{
    return offset <= size && bytes <= size - offset;
}

/* Makes the checksum of each record that an index entry names right. */
static void seal_records(uint8_t *file, size_t size, const struct image_section *index,
                         uint64_t seed)
{
    for (uint64_t at = 0; at + 8 <= index->bytes; at += 8) {
        uint64_t entry, sum;
        memcpy(&entry, file + index->offset + 8 + at, sizeof(entry));
        uint64_t offset = IMAGE_INDEX_OFFSET(entry), n = IMAGE_INDEX_BYTES(entry);
        if (!has_room(size, offset, sizeof(struct image_record) + n))
            continue;
        sum = codec_checksum(file + offset + 16, 8 + n, seed);
        memcpy(file + offset + 8, &sum, sizeof(sum));
    }
}

static void seal_sections(uint8_t *file, size_t size, struct image_trailer *t, uint64_t seed)
{
    for (uint32_t i = 0; i < IMAGE_MAX_SECTIONS; i++) {
        struct image_section *s = &t->sections[i];
        if (s->bytes > size || !has_room(size, s->offset, s->bytes + 8))
            continue;
        if (s->type == IMAGE_SECTION_INDEX)
            seal_records(file, size, s, seed);
        s->checksum = codec_checksum(file + s->offset, s->bytes + 8, 0);
    }
}

/* What a fuzzer would never guess: checksums, the id in the trailer, the size. */
static void seal(uint8_t *file, size_t size)
{
    struct image_header h;
    struct image_trailer t;
    if (size < sizeof(h) + sizeof(t))
        return;
    memcpy(&h, file, sizeof(h));
    memcpy(&t, file + size - sizeof(t), sizeof(t));
    uint64_t seed;
    memcpy(&seed, h.image_id, sizeof(seed));
    memcpy(t.image_id, h.image_id, sizeof(t.image_id));
    memcpy(t.magic, IMAGE_TRAILER_MAGIC, sizeof(t.magic));
    memcpy(h.magic, IMAGE_HEADER_MAGIC, sizeof(h.magic));
    t.file_bytes = size;
    seal_sections(file, size, &t, seed);
    h.checksum = t.checksum = 0;
    h.checksum = codec_checksum(&h, sizeof(h), 0);
    t.checksum = codec_checksum(&t, sizeof(t), 0);
    memcpy(file, &h, sizeof(h));
    memcpy(file + size - sizeof(t), &t, sizeof(t));
}

/* Every table and every cluster, as `info`, `export` and a restore use them. */
static void use(const struct image *img)
{
    static struct codec *codec;
    uint8_t out[IMAGE_CLUSTER_BYTES];
    uint32_t n_regions;
    uint64_t n, offset;
    struct error e;
    if (!codec && !(codec = codec_new(1)))
        abort();
    const struct image_region *regions = image_regions(img, &n_regions);
    const struct image_gpa *gpa = image_gpa_ranges(img, &n);
    for (uint64_t i = 0; i < n; i++)
        if (gpa[i].region >= n_regions ||
            !has_room(regions[gpa[i].region].bytes, gpa[i].offset, gpa[i].bytes))
            abort();
    for (uint64_t c = 0; c < image_get_trailer(img)->n_clusters; c++) {
        uint32_t region = image_cluster_region(img, c, &offset);
        uint32_t bytes = image_cluster_bytes(img, c);
        if (region >= n_regions || bytes == 0 || bytes > sizeof(out) ||
            offset + bytes > regions[region].bytes ||
            image_cluster_poison(img, c) >> (bytes / IMAGE_PAGE_BYTES))
            abort();
        image_read_cluster(img, c, codec, out, &e);
    }
    if (strlen(image_description(img)) > image_get_trailer(img)->file_bytes)
        abort();
}

static void try_image(const uint8_t *data, size_t size)
{
    const struct image_verify_calls calls = {0};
    struct image_verify_result result;
    struct image *img = NULL;
    struct error e = {0};
    int fd = memfd_create("image", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    if (image_open_fd(&img, fd, "input", &e) < 0) {
        if (e.exit_code == 0 || e.message[0] == '\0')
            abort();
        return;
    }
    n_opened++;
    use(img);
    int r = image_verify(img, 1, &calls, &result, &e);
    if ((r < 0) != (result.places_damaged > 0))
        abort();
    image_close(img);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *sealed = malloc(size ? size : 1);
    if (!sealed)
        return 0;
    memcpy(sealed, data, size);
    try_image(data, size);
    seal(sealed, size);
    try_image(sealed, size);
    free(sealed);
    return 0;
}
