/*
 * Every flipped byte and every truncation of an image is found by image_open() or image_verify(),
 * and no wrong byte ever comes out of image_read_cluster().
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/image/reader.h"
#include "common/testhook.h"
#include "tests/unit/image_sample.h"

#define PLACES 300

static struct sample_memory image;

static void make_sample(void)
{
    struct error e = {0};
    cr_assert_eq(sample_in_memory(&image, &e), 0, "%s", e.message);
    srandom(20261);
}

TestSuite(image_damage, .init = make_sample, .timeout = 60);

static struct image *try_open(struct error *e)
{
    struct image *img = NULL;
    *e = (struct error){0};
    int r = image_open_fd(&img, dup(image.fd), "sample", e);
    cr_assert_eq(r == 0, img != NULL);
    cr_assert(r == 0 || (e->exit_code == VMSNAP_EXIT_IMAGE && e->message[0]), "%s", e->message);
    return img;
}

struct seen {
    unsigned places, clusters;
    uint64_t offset;
};

static void note(void *opaque, uint64_t cluster, uint64_t offset, const char *what)
{
    struct seen *seen = opaque;
    cr_assert_not_null(what);
    seen->places++;
    seen->clusters += cluster != UINT64_MAX;
    seen->offset = offset;
}

/* Verifies an open image; returns the number of damaged places. */
static unsigned verify(struct image *img, unsigned n_threads, struct seen *seen)
{
    struct image_verify_result result;
    struct error e = {0};
    *seen = (struct seen){0};
    struct image_verify_calls calls = {.damage = note, .opaque = seen};
    int r = image_verify(img, n_threads, &calls, &result, &e);
    cr_assert_eq(r, seen->places ? -EBADMSG : 0, "%s", e.message);
    cr_assert_eq(result.places_damaged, seen->places);
    cr_assert_eq(result.pages_checked, 203 + 1 + 512);
    cr_assert_eq(result.pages_damaged > 0, seen->clusters > 0);
    return seen->places;
}

/* Each cluster either comes out right or is refused. Returns how many were refused. */
static unsigned read_all(struct image *img)
{
    struct codec *codec = codec_new(1);
    unsigned refused = 0;
    for (uint64_t c = 0; c < image_get_trailer(img)->n_clusters; c++) {
        uint8_t got[IMAGE_CLUSTER_BYTES], expected[IMAGE_CLUSTER_BYTES];
        struct error e = {0};
        uint64_t offset;
        unsigned stored;
        uint32_t region = image_cluster_region(img, c, &offset);
        uint32_t n = sample_cluster(region, offset / IMAGE_CLUSTER_BYTES, expected, &stored);
        if (image_read_cluster(img, c, codec, got, &e) == 0) {
            cr_assert_arr_eq(got, expected, n, "cluster %llu reads wrong", (unsigned long long)c);
        } else {
            cr_assert_eq(e.exit_code, VMSNAP_EXIT_IMAGE);
            refused++;
        }
    }
    codec_free(codec);
    return refused;
}

/* One byte changed: found, and what comes out is still right. */
static void flip_is_found(uint64_t at, uint8_t mask)
{
    struct error e;
    struct seen seen = {0};
    image.bytes[at] ^= mask;
    struct image *img = try_open(&e);
    if (img) {
        cr_assert_geq(verify(img, 1 + at % 3, &seen), 1, "byte %llu ^ %#x was not found",
                      (unsigned long long)at, mask);
        cr_assert_leq(seen.offset, at);
        cr_assert_eq(read_all(img), seen.clusters);
        image_close(img);
    }
    image.bytes[at] ^= mask;
}

Test(image_damage, the_whole_image_is_good)
{
    struct error e;
    struct seen seen;
    for (unsigned n_threads = 0; n_threads <= 4; n_threads++) {
        struct image *img = try_open(&e);
        cr_assert_eq(verify(img, n_threads, &seen), 0);
        cr_assert_eq(read_all(img), 0);
        image_close(img);
    }
}

Test(image_damage, a_flipped_byte_anywhere_is_found)
{
    for (unsigned i = 0; i < PLACES; i++)
        flip_is_found((uint64_t)random() % image.n_bytes, (uint8_t)(1 + random() % 255));
}

Test(image_damage, a_flipped_bit_of_what_is_not_page_data_is_found)
{
    struct error e;
    struct image *img = try_open(&e);
    uint64_t records_end = image_get_trailer(img)->records_end;
    uint64_t record = IMAGE_INDEX_OFFSET(image_index_entry(img, 0));
    image_close(img);
    for (uint64_t at = 0; at < 64; at++)
        flip_is_found(at, 0x01);
    for (uint64_t at = record; at < record + sizeof(struct image_record) + 16; at++)
        flip_is_found(at, 0x80);
    for (uint64_t at = sizeof(struct image_header); at < sizeof(struct image_header) + 48; at++)
        flip_is_found(at, 0x10); /* the record that no index entry names any more */
    for (uint64_t at = records_end; at < image.n_bytes; at += 1 + (uint64_t)random() % 20)
        flip_is_found(at, (uint8_t)(1u << random() % 8));
}

Test(image_damage, a_truncated_image_is_refused)
{
    struct error e;
    for (unsigned i = 0; i < PLACES; i++) {
        uint64_t length = i < 20 ? i : (uint64_t)random() % image.n_bytes;
        int shorter = memfd_create("short", MFD_CLOEXEC);
        cr_assert_eq(write(shorter, image.bytes, length), (ssize_t)length);
        struct image *img = NULL;
        cr_assert_lt(image_open_fd(&img, shorter, "short", &e), 0, "%llu bytes were accepted",
                     (unsigned long long)length);
        cr_assert_eq(e.exit_code, VMSNAP_EXIT_IMAGE);
        cr_assert_neq(e.hint[0], '\0');
    }
}

Test(image_damage, a_file_cut_while_it_is_open_gives_errors)
{
    struct error e;
    struct seen seen;
    struct image *img = try_open(&e);
    munmap(image.bytes, image.n_bytes);
    cr_assert_eq(ftruncate(image.fd, 6000), 0);
    cr_assert_gt(read_all(img), 10);
    cr_assert_gt(verify(img, 2, &seen), 10);
    image_close(img);
}

Test(image_damage, appended_bytes_are_refused)
{
    struct error e;
    char more[8192] = {0};
    cr_assert_eq(pwrite(image.fd, more, sizeof(more), (off_t)image.n_bytes), (ssize_t)sizeof(more));
    cr_assert_null(try_open(&e));
}

Test(image_damage, what_is_no_image_is_refused)
{
    struct image *img;
    struct error e = {0};
    static const char *const others[] = {"/dev/null", "/", "/proc/self/exe", "/proc/version"};
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        cr_assert_lt(image_open(&img, others[i], &e), 0);
        cr_assert_eq(e.exit_code, VMSNAP_EXIT_IMAGE, "%s: %s", others[i], e.message);
        cr_assert_neq(e.hint[0], '\0');
    }
    cr_assert_lt(image_open(&img, "/nonexistent", &e), 0);
    cr_assert_eq(e.exit_code, VMSNAP_EXIT_FAILED);
}

Test(image_damage, a_fifo_does_not_hang)
{
    struct image *img;
    struct error e = {0};
    char path[] = "/tmp/vmsnap-fifo-XXXXXX";
    cr_assert_not_null(mkdtemp(path));
    char fifo[64];
    snprintf(fifo, sizeof(fifo), "%s/f", path);
    cr_assert_eq(mkfifo(fifo, 0600), 0);
    cr_assert_lt(image_open(&img, fifo, &e), 0);
    cr_assert_eq(e.exit_code, VMSNAP_EXIT_IMAGE);
    unlink(fifo);
    rmdir(path);
}

#ifdef VMSNAP_TEST_HOOKS
/* The rule that is broken here is what stands between a rotten page and a guest. */
Test(image_damage, without_the_checksum_a_wrong_byte_comes_out)
{
    struct error e;
    struct image *img = try_open(&e);
    struct codec *codec = codec_new(1);
    uint8_t got[IMAGE_CLUSTER_BYTES], expected[IMAGE_CLUSTER_BYTES];
    unsigned stored;
    sample_cluster(0, 0, expected, &stored);
    /* The last byte of cluster 0's frame is a literal of its last, random, page. */
    uint64_t entry = image_index_entry(img, 0);
    image.bytes[IMAGE_INDEX_OFFSET(entry) + sizeof(struct image_record) + 200] ^= 1;
    cr_assert_eq(image_read_cluster(img, 0, codec, got, &e), -EBADMSG);
    setenv("VMSNAP_BREAK", "checksum-ignored", 1);
    cr_assert_eq(image_read_cluster(img, 0, codec, got, &e), 0, "%s", e.message);
    cr_assert_arr_neq(got, expected, sizeof(got));
    codec_free(codec);
    image_close(img);
}
#endif
