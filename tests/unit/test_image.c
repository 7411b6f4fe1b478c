/* A written image reads back as it was; what a person did not ask for is refused. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/image/reader.h"
#include "tests/unit/image_sample.h"

static char dir[] = "/tmp/vmsnap-image-XXXXXX";
static char path[64];

static void make_sample(void)
{
    struct error e = {0};
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/image", dir);
    cr_assert_eq(sample_write_file(path, &e), 0, "%s", e.message);
}

static void remove_sample(void)
{
    unlink(path);
    cr_expect_eq(rmdir(dir), 0, "something was left beside the image");
}

TestSuite(image, .init = make_sample, .fini = remove_sample);

static struct image *open_sample(void)
{
    struct image *img;
    struct error e = {0};
    cr_assert_eq(image_open(&img, path, &e), 0, "%s", e.message);
    return img;
}

Test(image, reads_back_every_page)
{
    struct image *img = open_sample();
    struct codec *codec = codec_new(1);
    struct error e = {0};
    uint64_t n_clusters = image_get_trailer(img)->n_clusters;
    cr_assert_eq(n_clusters, 51 + 1 + 128);
    for (uint64_t c = 0; c < n_clusters; c++) {
        uint8_t got[IMAGE_CLUSTER_BYTES], expected[IMAGE_CLUSTER_BYTES];
        uint64_t offset;
        unsigned stored;
        uint32_t region = image_cluster_region(img, c, &offset);
        uint32_t bytes = sample_cluster(region, offset / IMAGE_CLUSTER_BYTES, expected, &stored);
        cr_assert_eq(image_cluster_bytes(img, c), bytes);
        cr_assert_eq(image_read_cluster(img, c, codec, got, &e), 0, "%s", e.message);
        cr_assert_arr_eq(got, expected, bytes);
        cr_assert_eq(image_index_entry(img, c) == IMAGE_INDEX_ZERO, stored == 0);
    }
    codec_free(codec);
    image_close(img);
}

Test(image, tells_what_was_recorded)
{
    struct image *img = open_sample();
    const struct image_trailer *t = image_get_trailer(img);
    uint64_t n;
    uint32_t n_regions;
    cr_assert_eq(t->instant_ns, SAMPLE_INSTANT_NS);
    cr_assert_eq(t->pages_poisoned, 1);
    cr_assert_eq(t->pages_zero + t->pages_stored + t->pages_poisoned, 203 + 1 + 512);
    cr_assert_eq(t->pages_from_faults, 7);
    const struct image_region *regions = image_regions(img, &n_regions);
    cr_assert_eq(n_regions, SAMPLE_REGIONS);
    cr_assert_str_eq(regions[1].name, "/rom@etc/bios");
    cr_assert_eq(regions[2].first_cluster, 52);
    cr_assert_eq(regions[0].max_bytes, 256 * 4096);
    const struct image_gpa *gpa = image_gpa_ranges(img, &n);
    cr_assert_eq(n, 3);
    cr_assert_eq(gpa[1].flags, GPA_ROM);
    const struct image_hot *hot = image_hot_list(img, &n);
    cr_assert_eq(n, 2);
    cr_assert_eq(hot[0].cluster, 3);
    image_poison_list(img, &n);
    cr_assert_eq(n, 1);
    cr_assert_eq(image_cluster_poison(img, 2), 2);
    cr_assert_eq(image_cluster_poison(img, 3), 0);
    const char *state = image_device_state(img, &n);
    cr_assert_eq(n, 9);
    cr_assert_arr_eq(state, "QEVMstate", 9);
    cr_assert_str_eq(image_description(img), SAMPLE_DESCRIPTION);
    image_close(img);
}

Test(image, is_readable_by_its_owner_only)
{
    struct stat st;
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq(st.st_mode & 07777, 0600);
}
