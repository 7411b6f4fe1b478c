/* The migration stream, byte by byte. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "restore/launch/qemu/stream.h"

static const unsigned char state[] = {'Q', 'E', 'V', 'M', 0, 0, 0, 3, 4, 'x', 'y', 0};

static const unsigned char expected[] = {
    'Q',  'E', 'V',  'M', 0,   0,   0,    3,   7,   0,    0, 0, 3, 'p', 'c', '1', /* the machine */
    4,    'v', 'm',  's', 'n', 3,   'r',  'a', 'm',          /* a full section "ram" */
    0,    0,   0,    0,   0,   0,   0,    4,                 /* instance, version */
    0,    0,   0,    0,   0,   0,   0x30, 4,                 /* total and MEM_SIZE */
    2,    'b', '1',  0,   0,   0,   0,    0,   0,   0x10, 0, /* blocks */
    2,    'b', '2',  0,   0,   0,   0,    0,   0,   0x20, 0, 0, 0, 0,   0,   0,
    0,    0,   0x10,           /* EOS */
    0x7e, 'v', 'm',  's', 'n', /* footer */
    4,    'x', 'y',  0,        /* the saved sections */
    6,    0,   0,    0,   2,   '{', '}',
};

Test(stream, is_the_saved_state_with_machine_and_blocks)
{
    struct image_region regions[] = {
        {.name = "b1", .bytes = 0x1000},
        {.name = "", .bytes = 0x5000}, /* not migrated */
        {.name = "b2", .bytes = 0x2000},
    };
    void *out;
    size_t len;
    struct error e = {0};
    cr_assert_eq(stream_build(&out, &len, state, sizeof(state), "pc1", regions, 3, &e), 0);
    cr_assert_eq(len, sizeof(expected));
    cr_assert_eq(memcmp(out, expected, len), 0);
    free(out);
}

Test(stream, refuses_what_is_no_state)
{
    void *out;
    size_t len;
    struct error e = {0};
    cr_assert_neq(stream_build(&out, &len, state, 8, "pc1", NULL, 0, &e), 0);
    cr_assert_eq(e.exit_code, VMSNAP_EXIT_IMAGE);
    cr_assert_neq(stream_build(&out, &len, NULL, 0, "pc1", NULL, 0, &e), 0);
    unsigned char other[sizeof(state)];
    memcpy(other, state, sizeof(state));
    other[7] = 4;
    cr_assert_neq(stream_build(&out, &len, other, sizeof(other), "pc1", NULL, 0, &e), 0);
}
