/* What the writer must not publish, and what it counts. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "common/codec.h"
#include "common/image/reader.h"
#include "common/image/writer.h"

static int image_file;
static struct sink *sink;

static void set_up(void)
{
    struct error e = {0};
    const struct sink_options options = {.n_buffers = SINK_MIN_BUFFERS};
    image_file = memfd_create("image", MFD_CLOEXEC);
    cr_assert_eq(sink_open_fd(&sink, image_file, &options, &e), 0, "%s", e.message);
}

static void tear_down(void)
{
    cr_assert_eq(sink_close(sink), 0);
}

TestSuite(image_writer, .init = set_up, .fini = tear_down);

static struct region make_region(const char *name, uint64_t bytes)
{
    struct region r = {
        .bytes = bytes, .max_bytes = bytes, .page_bytes = 4096, .kind = REGION_ANON, .fd = -1};
    snprintf(r.name, sizeof(r.name), "%s", name);
    return r;
}

static struct image_writer *open_writer(const struct region *regions, uint32_t n)
{
    struct image_writer *w;
    struct error e = {0};
    cr_assert_eq(image_writer_open(&w, sink, regions, n, &e), 0, "%s", e.message);
    return w;
}

static const struct image_finish empty = {.description = "{}"};

Test(image_writer, refuses_regions_that_a_reader_would_refuse)
{
    struct region bad[][2] = {
        {make_region("", 4096)},
        {make_region("a\nb", 4096)},
        {make_region("caf\xc3\xa9", 4096)},
        {make_region("a", 0)},
        {make_region("a", 4097)},
        {make_region("a", UINT64_MAX - 4095)},
        {make_region("a", 4096), make_region("a", 4096)},
        {make_region("a", 8192)},
        {make_region("a", 8192)},
        {make_region("a", 8192)},
        {make_region("a", 8192)},
    };
    bad[7][0].max_bytes = 4096;
    bad[8][0].page_bytes = 0;
    bad[9][0].page_bytes = 5000;
    bad[10][0].kind = 0;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct image_writer *w;
        struct error e = {0};
        cr_assert_eq(image_writer_open(&w, sink, bad[i], i == 6 ? 2 : 1, &e), -EINVAL, "case %zu",
                     i);
        cr_assert_neq(e.message[0], '\0');
    }
    struct error e = {0};
    struct image_writer *w;
    struct region huge = make_region("huge", 16ull << 40);
    cr_assert_eq(image_writer_open(&w, sink, &huge, 1, &e), -EFBIG, "more than the index can name");
    cr_assert_eq(image_writer_open(&w, sink, NULL, 0, &e), -EINVAL);
}

Test(image_writer, refuses_to_finish_without_a_cluster)
{
    struct error e = {0};
    struct region r = make_region("ram", 3 * IMAGE_CLUSTER_BYTES);
    struct image_writer *w = open_writer(&r, 1);
    image_writer_add_zero(w, 0);
    image_writer_add_zero(w, 2);
    cr_assert_eq(image_writer_finish(w, &empty, &e), -EINVAL);
    cr_assert_not_null(strstr(e.message, "cluster 1 "), "%s", e.message);
    image_writer_close(w);
}

static void add(struct image_writer *w, struct codec *codec, uint64_t cluster, unsigned stored)
{
    _Alignas(8) uint8_t record[sizeof(struct image_record) + IMAGE_FRAME_MAX];
    uint8_t plain[IMAGE_CLUSTER_BYTES] = {0};
    for (unsigned i = 0; i < stored; i++)
        plain[i * IMAGE_PAGE_BYTES] = 1;
    int n = codec_encode(codec, plain, sizeof(plain), record + sizeof(struct image_record));
    cr_assert_gt(n, 0);
    cr_assert_eq(image_writer_add(w, cluster, record, (uint32_t)n, stored), 0);
}

/* A cluster that is added again counts once, as what it is in the end. */
Test(image_writer, counts_the_last_copy)
{
    struct error e = {0};
    struct image_totals t;
    struct codec *codec = codec_new(1);
    struct region r = make_region("ram", 4 * IMAGE_CLUSTER_BYTES);
    struct image_writer *w = open_writer(&r, 1);
    cr_assert_eq(image_writer_n_clusters(w), 4);
    add(w, codec, 0, 4);
    add(w, codec, 1, 4);
    add(w, codec, 2, 1);
    image_writer_add_zero(w, 3);
    add(w, codec, 0, 2);         /* fewer pages */
    image_writer_add_zero(w, 1); /* none */
    add(w, codec, 3, 3);         /* more */
    const struct image_poison poison = {.cluster = 2, .pages = 0xc};
    struct image_finish f = empty;
    f.poison = &poison;
    f.n_poison = 1;
    cr_assert_eq(image_writer_finish(w, &f, &e), 0, "%s", e.message);
    image_writer_totals(w, &t);
    cr_assert_eq(t.pages_total, 16);
    cr_assert_eq(t.pages_stored, 2 + 0 + 1 + 3);
    cr_assert_eq(t.pages_poisoned, 2);
    cr_assert_eq(t.pages_zero, 16 - 6 - 2);
    cr_assert_eq(t.image_bytes, sink_offset(sink));
    cr_assert_eq(sink_commit(sink, &e), 0, "%s", e.message);
    image_writer_close(w);

    struct image *img;
    uint8_t got[IMAGE_CLUSTER_BYTES];
    cr_assert_eq(image_open_fd(&img, image_file, "image", &e), 0, "%s", e.message);
    cr_assert_eq(image_index_entry(img, 1), IMAGE_INDEX_ZERO);
    cr_assert_eq(image_read_cluster(img, 0, codec, got, &e), 0, "%s", e.message);
    cr_assert_eq(got[IMAGE_PAGE_BYTES], 1);
    cr_assert_eq(got[2 * IMAGE_PAGE_BYTES], 0);
    image_close(img);
    codec_free(codec);
}

Test(image_writer, ids_are_random_and_version_4)
{
    struct region r = make_region("ram", 4096);
    struct image_writer *a = open_writer(&r, 1), *b = open_writer(&r, 1);
    cr_assert_arr_neq(image_writer_id(a), image_writer_id(b), 16);
    cr_assert_eq(image_writer_id(a)[6] >> 4, 4);
    cr_assert_eq(image_writer_id(a)[8] >> 6, 2);
    image_writer_close(a);
    image_writer_close(b);
}
