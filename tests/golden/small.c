/*
 * small.c - `image_small FILE`: writes a small image with this program's writer. tests/golden keeps
 * one for each version of the format; make.py derives the others from it.
 *
 * Region "ram": 11 pages, byte i of page p is p * 37 + i / 16, but pages 4 to 7 are zero and page 9
 * is poisoned. Region "rom": one page, byte i is i % 251. Cluster 0 is there twice, first as all
 * 'x'.
 */
#include <stdio.h>
#include <string.h>

#include "common/codec.h"
#include "common/image/writer.h"

static const struct region regions[] = {
    {.name = "ram",
     .bytes = 11 * 4096,
     .max_bytes = 16 * 4096,
     .page_bytes = 4096,
     .kind = REGION_ANON,
     .fd = -1},
    {.name = "rom",
     .bytes = 4096,
     .max_bytes = 4096,
     .page_bytes = 4096,
     .kind = REGION_SHARED,
     .fd = -1},
};

static void fill(uint64_t cluster, uint8_t *out)
{
    memset(out, 0, IMAGE_CLUSTER_BYTES);
    for (unsigned i = 0; i < IMAGE_CLUSTER_BYTES; i++) {
        unsigned page = (unsigned)cluster * IMAGE_CLUSTER_PAGES + i / IMAGE_PAGE_BYTES;
        if (cluster == 3)
            out[i] = (uint8_t)(i % 251);
        else if (page != 9)
            out[i] = (uint8_t)(page * 37 + i % IMAGE_PAGE_BYTES / 16);
    }
}

static int add(struct image_writer *w, struct codec *codec, uint64_t cluster, const uint8_t *plain)
{
    static const unsigned pages[] = {4, 0, 2, 1}, present[] = {4, 4, 3, 1};
    _Alignas(8) uint8_t record[sizeof(struct image_record) + IMAGE_FRAME_MAX];
    int n = codec_encode(codec, plain, (size_t)present[cluster] * IMAGE_PAGE_BYTES,
                         record + sizeof(struct image_record));
    return n < 0 ? n : image_writer_add(w, cluster, record, (uint32_t)n, pages[cluster]);
}

static int add_all(struct image_writer *w, struct codec *codec)
{
    uint8_t plain[IMAGE_CLUSTER_BYTES];
    memset(plain, 'x', sizeof(plain));
    int r = add(w, codec, 0, plain);
    for (uint64_t c = 0; c < 4 && r == 0; c++) {
        fill(c, plain);
        if (c == 1)
            image_writer_add_zero(w, c);
        else
            r = add(w, codec, c, plain);
    }
    return r;
}

static int write_image(struct sink *sink, struct codec *codec, struct error *e)
{
    static const struct gpa_range gpa[] = {
        {.gpa = 0, .bytes = 5 * 4096, .region = 0},
        {.gpa = 0x8000, .bytes = 6 * 4096, .region = 0, .offset = 5 * 4096},
        {.gpa = 0x100000, .bytes = 4096, .region = 1, .flags = GPA_ROM}};
    static const struct image_hot hot[] = {{2, 1}, {0, 3}};
    static const struct image_poison poison[] = {{2, 2}};
    const struct image_finish f = {.gpa = gpa,
                                   .n_gpa = 3,
                                   .hot = hot,
                                   .n_hot = 2,
                                   .poison = poison,
                                   .n_poison = 1,
                                   .device_state = "QEVM\0\0\0\003golden",
                                   .device_state_bytes = 14,
                                   .description = "{\"vmm\":\"qemu\",\"vm_name\":\"golden\"}",
                                   .instant_ns = 1700000000123456789ull};
    struct image_writer *w;
    int r = image_writer_open(&w, sink, regions, 2, e);
    if (r < 0)
        return r;
    r = add_all(w, codec);
    if (r == 0)
        r = image_writer_finish(w, &f, e);
    image_writer_close(w);
    return r < 0 ? r : sink_commit(sink, e);
}

int main(int argc, char **argv)
{
    const struct sink_options options = {.overwrite = true, .n_buffers = SINK_MIN_BUFFERS};
    struct error e = {0};
    struct sink *sink;
    struct codec *codec = codec_new(1);
    if (argc != 2 || !codec || sink_open_file(&sink, argv[1], &options, &e) < 0) {
        fprintf(stderr, "image_small FILE: %s\n", e.message);
        return 1;
    }
    int r = write_image(sink, codec, &e);
    if (r < 0)
        fprintf(stderr, "image_small: %s\n", e.message);
    codec_free(codec);
    return sink_close(sink) < 0 || r < 0;
}
