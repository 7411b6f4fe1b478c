#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/codec.h"
#include "common/image/format.h"

static uint8_t plain[IMAGE_CLUSTER_BYTES], frame[IMAGE_FRAME_MAX + 64];
static uint8_t out[IMAGE_CLUSTER_BYTES + 64];
static struct codec *codec;

static void set_up(void)
{
    codec = codec_new(1);
    cr_assert_not_null(codec);
    srandom(7);
}

static void tear_down(void)
{
    codec_free(codec);
}

TestSuite(codec, .init = set_up, .fini = tear_down);

/* share: of 256, how many bytes are random. */
static void fill(unsigned share)
{
    for (size_t i = 0; i < sizeof(plain); i++)
        plain[i] = (unsigned)random() % 256 < share ? (uint8_t)random() : (uint8_t)(i / 7);
}

Test(codec, every_length_comes_back)
{
    static const unsigned shares[] = {0, 10, 100, 256};
    for (size_t s = 0; s < sizeof(shares) / sizeof(shares[0]); s++) {
        fill(shares[s]);
        for (size_t len = IMAGE_PAGE_BYTES; len <= IMAGE_CLUSTER_BYTES; len += IMAGE_PAGE_BYTES) {
            int n = codec_encode(codec, plain, len, frame);
            cr_assert_gt(n, 0);
            cr_assert_leq(n, codec_frame_max());
            cr_assert_eq(codec_frame_bytes(frame, sizeof(frame)), n);
            memset(out, 0x5a, sizeof(out));
            cr_assert_eq(codec_decode(codec, frame, (size_t)n, out, len), 0);
            cr_assert_arr_eq(out, plain, len);
            cr_assert_eq(out[len], 0x5a);
        }
    }
}

Test(codec, every_level_of_the_command_line_works)
{
    fill(60);
    for (int level = 1; level <= 19; level++) {
        struct codec *c = codec_new(level);
        cr_assert_not_null(c);
        int n = codec_encode(c, plain, sizeof(plain), frame);
        cr_assert_gt(n, 0);
        cr_assert_eq(codec_decode(codec, frame, (size_t)n, out, sizeof(plain)), 0);
        cr_assert_arr_eq(out, plain, sizeof(plain));
        codec_free(c);
    }
}

Test(codec, more_than_a_cluster_is_refused)
{
    cr_assert_eq(codec_encode(codec, plain, sizeof(plain) + 1, frame), -EINVAL);
}

Test(codec, only_the_exact_length_decodes)
{
    fill(30);
    int n = codec_encode(codec, plain, 8192, frame);
    cr_assert_eq(codec_decode(codec, frame, (size_t)n, out, 8191), -EBADMSG);
    cr_assert_eq(codec_decode(codec, frame, (size_t)n, out, 8193), -EBADMSG);
    cr_assert_eq(codec_decode(codec, frame, (size_t)n - 1, out, 8192), -EBADMSG);
    cr_assert_eq(codec_decode(codec, frame, (size_t)n + 1, out, 8192), -EBADMSG);
    cr_assert_eq(codec_decode(codec, frame, 3, out, 8192), -EBADMSG);
    cr_assert_eq(codec_decode(codec, frame, 0, out, 8192), -EBADMSG);
}

/* Whatever the bytes: an error or a decode, and nothing behind the buffer. */
Test(codec, damaged_frames_stay_in_their_buffer)
{
    fill(40);
    int n = codec_encode(codec, plain, sizeof(plain), frame);
    unsigned refused = 0;
    for (int i = 0; i < n; i++) {
        frame[i] ^= (uint8_t)(1 + random() % 255);
        memset(out, 0x5a, sizeof(out));
        refused += codec_decode(codec, frame, (size_t)n, out, sizeof(plain)) != 0;
        for (size_t j = sizeof(plain); j < sizeof(out); j++)
            cr_assert_eq(out[j], 0x5a);
        codec_encode(codec, plain, sizeof(plain), frame);
    }
    cr_assert_gt(refused, 0);
    codec_encode(codec, plain, sizeof(plain), frame); /* and the codec still works */
    cr_assert_eq(codec_decode(codec, frame, (size_t)n, out, sizeof(plain)), 0);
}

Test(codec, zero_is_seen_and_one_bit_too)
{
    static const size_t lengths[] = {1, 8, 63, 64, 65, 127, 128, 4096, IMAGE_CLUSTER_BYTES};
    memset(plain, 0, sizeof(plain));
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        cr_assert(codec_is_zero(plain, lengths[i]));
        for (size_t at = 0; at < lengths[i]; at += 1 + lengths[i] / 300) {
            plain[at] = 0x80;
            cr_assert_not(codec_is_zero(plain, lengths[i]), "%zu of %zu", at, lengths[i]);
            plain[at] = 0;
        }
        plain[lengths[i] - 1] = 1;
        cr_assert_not(codec_is_zero(plain, lengths[i]));
        plain[lengths[i] - 1] = 0;
    }
    cr_assert(codec_is_zero(plain, 0));
}

Test(codec, checksums_are_xxh3)
{
    /* The published value of XXH3-64 of nothing, seed 0. */
    cr_assert_eq(codec_checksum("", 0, 0), 0x2d06800538d394c2ull);
    fill(256);
    for (size_t split = 0; split < 1000; split += 37)
        cr_assert_eq(codec_checksum2(plain, split, plain + split, sizeof(plain) - split),
                     codec_checksum(plain, sizeof(plain), 0));
    cr_assert_neq(codec_checksum(plain, 100, 0), codec_checksum(plain, 100, 1));
}
