/*
 * The file of a working set: what is written is read again, byte by byte as docs/format.md has it;
 * every file that is damaged, of something else, or a lie is refused for its own reason; and the
 * order in which an image is prefetched.
 */
#include <criterion/criterion.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "restore/decode/prefetch.h"
#include "restore/decode/workset.h"
#include "tests/unit/image_sample.h"

static struct image *img;
static uint64_t n_clusters;

/* What a run touched: the third was written first. */
static const uint64_t touched[] = {40, 3, 7 | WORKSET_WRITE, 8, 0};
#define TOUCHED (sizeof(touched) / sizeof(touched[0]))

static struct {
    struct workset_header header;
    uint64_t entries[64];
} file;

static void open_sample(void)
{
    struct sink *sink;
    struct error e = {0};
    const struct sink_options options = {.n_buffers = SINK_MIN_BUFFERS};
    int fd = memfd_create("image", MFD_CLOEXEC);
    cr_assert_eq(sink_open_fd(&sink, fd, &options, &e), 0, "%s", e.message);
    cr_assert_eq(sample_write(sink, &e), 0, "%s", e.message);
    cr_assert_eq(sink_close(sink), 0);
    cr_assert_eq(image_open_fd(&img, fd, "sample", &e), 0, "%s", e.message);
    n_clusters = image_get_trailer(img)->n_clusters;
    memcpy(file.entries, touched, sizeof(touched));
    workset_fill_header(&file.header, img, touched, TOUCHED);
}

static void close_sample(void)
{
    image_close(img);
}

TestSuite(workset, .init = open_sample, .fini = close_sample, .timeout = 30);

static int read_bytes(struct workset *w, size_t bytes, struct error *e)
{
    *e = (struct error){0};
    return workset_parse(w, &file, bytes, "it", img, e);
}

#define WHOLE (sizeof(struct workset_header) + TOUCHED * 8)

/* As a liar would: the checksum is right. */
static void seal(size_t n)
{
    file.header.checksum = 0;
    file.header.checksum = codec_checksum(&file, sizeof(file.header) + n * 8, 0);
}

static void check_refused(size_t bytes, const char *says)
{
    struct workset w;
    struct error e;
    cr_assert_lt(read_bytes(&w, bytes, &e), 0, "not refused: %s", says);
    cr_assert_not_null(strstr(e.message, says), "'%s' is not in '%s'", says, e.message);
    cr_assert_null(w.entries);
}

Test(workset, what_is_written_is_read)
{
    struct workset w;
    struct error e;
    cr_assert_eq(read_bytes(&w, WHOLE, &e), 0, "%s", e.message);
    cr_assert_eq(w.n, TOUCHED);
    cr_assert_arr_eq(w.entries, touched, sizeof(touched));
    workset_free(&w);
}

Test(workset, it_is_what_the_format_says)
{
    const uint8_t *b = (const uint8_t *)&file;
    uint64_t n = 0, entries = 0, third = 0;
    cr_assert_arr_eq(b, "VMSNAPWS\1\0\0\0\0\0\0\0", 16);
    cr_assert_arr_eq(b + 16, image_get_header(img)->image_id, 16);
    memcpy(&n, b + 32, 8);
    memcpy(&entries, b + 40, 8);
    memcpy(&third, b + 64 + 16, 8);
    cr_assert_eq(n, n_clusters);
    cr_assert_eq(entries, 5);
    cr_assert_eq(third, 0x8000000000000007ull);
    uint64_t sum = file.header.checksum;
    seal(TOUCHED);
    cr_assert_eq(file.header.checksum, sum);
}

Test(workset, an_empty_one_is_one)
{
    struct workset w;
    struct error e;
    workset_fill_header(&file.header, img, touched, 0);
    cr_assert_eq(read_bytes(&w, sizeof(file.header), &e), 0, "%s", e.message);
    cr_assert_eq(w.n, 0);
    workset_free(&w);
}

Test(workset, each_damaged_byte_is_noticed)
{
    for (size_t at = 0; at < WHOLE; at++) {
        struct workset w;
        struct error e;
        ((uint8_t *)&file)[at] ^= 0x10;
        cr_assert_lt(read_bytes(&w, WHOLE, &e), 0, "byte %zu", at);
        ((uint8_t *)&file)[at] ^= 0x10;
    }
}

Test(workset, each_length_but_its_own_is_refused)
{
    struct workset w;
    struct error e;
    for (size_t bytes = 0; bytes < sizeof(file); bytes++) {
        cr_assert_eq(read_bytes(&w, bytes, &e) == 0, bytes == WHOLE, "%zu bytes", bytes);
        workset_free(&w);
    }
}

Test(workset, that_of_another_image_is_refused)
{
    file.header.image_id[5] ^= 1;
    seal(TOUCHED);
    check_refused(WHOLE, "another image");
    file.header.image_id[5] ^= 1;
    file.header.n_clusters++;
    seal(TOUCHED);
    check_refused(WHOLE, "another image");
}

Test(workset, a_newer_one_is_refused)
{
    file.header.version = 2;
    seal(TOUCHED);
    check_refused(WHOLE, "another version");
}

Test(workset, lengths_that_lie_are_refused)
{
    static const uint64_t lies[] = {1ull << 61, UINT64_MAX, UINT64_MAX / 8, 1ull << 32};
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        file.header.n_entries = lies[i];
        seal(TOUCHED);
        check_refused(WHOLE, "larger than the image");
    }
    file.header.n_entries = n_clusters;
    seal(TOUCHED);
    check_refused(WHOLE, "wrong length");
}

Test(workset, clusters_that_do_not_exist_are_refused)
{
    static const uint64_t bits[] = {1ull << 62, WORKSET_WRITE | 1ull << 40};
    for (size_t i = 0; i < sizeof(bits) / sizeof(bits[0]); i++) {
        file.entries[1] = bits[i];
        seal(TOUCHED);
        check_refused(WHOLE, "do not exist");
    }
    file.entries[1] = n_clusters;
    seal(TOUCHED);
    check_refused(WHOLE, "do not exist");
}

/* What a fuzzer would do that knows the checksum: whatever comes, it is refused, or names clusters
 * of the image alone. */
Test(workset, no_lie_gets_through)
{
    uint64_t x = 88172645463325252ull;
    unsigned accepted = 0;
    for (int i = 0; i < 20000; i++) {
        struct workset w;
        struct error e;
        size_t n_words = sizeof(file) / 8, n = TOUCHED;
        memset(&file, 0, sizeof(file));
        memcpy(file.entries, touched, sizeof(touched));
        workset_fill_header(&file.header, img, touched, TOUCHED);
        for (int k = 0; k < 3; k++) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            ((uint64_t *)&file)[x % n_words] ^= 1ull << (x >> 32) % 64;
        }
        if (file.header.n_entries <= 64)
            n = file.header.n_entries;
        seal(n);
        if (read_bytes(&w, sizeof(file.header) + n * 8, &e))
            continue;
        accepted++;
        for (uint64_t k = 0; k < w.n; k++)
            cr_assert_lt(WORKSET_CLUSTER(w.entries[k]), n_clusters);
        workset_free(&w);
    }
    cr_assert_gt(accepted, 100, "%u of them were accepted", accepted);
}

/* ---- the order ---- */

Test(workset, what_was_learned_comes_before_the_hot_list_and_each_once)
{
    uint64_t again[] = {2, 5 | WORKSET_WRITE, 2, 5, 9};
    const struct workset learned = {.entries = again, .n = 5};
    uint64_t n_hot, n = 3;
    const struct image_hot *hot = image_hot_list(img, &n_hot);
    cr_assert_gt(n_hot, 0, "the sample has a hot list");
    struct prefetch p;
    cr_assert_eq(prefetch_plan(&p, img, &learned, true), 0);
    cr_assert_eq(p.n_learned, 3);
    cr_assert_eq(p.entries[0], 2);
    cr_assert_eq(p.entries[1], 5 | WORKSET_WRITE);
    cr_assert_eq(p.entries[2], 9);
    for (uint64_t i = 0; i < n_hot; i++) {
        uint64_t c = hot[i].cluster;
        bool there = c == 2 || c == 5 || c == 9;
        for (uint64_t k = 0; k < i; k++)
            there |= hot[k].cluster == c;
        if (!there)
            cr_assert_eq(p.entries[n++], c | WORKSET_WRITE);
    }
    cr_assert_eq(p.n, n);
    prefetch_begin_reading(&p);
    prefetch_free(&p);
}

Test(workset, of_a_huge_page_the_first_cluster_stands_for_all)
{
    /* Region "zeros", 2 MiB in one page, begins after 51 and 1 clusters. */
    uint64_t inside[] = {60, 61 | WORKSET_WRITE, 52 + 127};
    const struct workset learned = {.entries = inside, .n = 3};
    struct prefetch p;
    cr_assert_eq(n_clusters, 52 + 128);
    cr_assert_eq(prefetch_plan(&p, img, &learned, false), 0);
    cr_assert_eq(p.n, 1);
    cr_assert_eq(p.entries[0], 52);
    prefetch_free(&p);
}

Test(workset, without_anything_the_order_is_empty)
{
    struct prefetch p;
    cr_assert_eq(prefetch_plan(&p, img, NULL, false), 0);
    cr_assert_eq(p.n, 0);
    prefetch_begin_reading(&p);
    cr_assert_not(p.has_reader);
    prefetch_free(&p);
}
