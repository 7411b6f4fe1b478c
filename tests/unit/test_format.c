#include <criterion/criterion.h>

#include "common/format.h"

static void bytes_are(uint64_t bytes, const char *expected)
{
    char out[FORMAT_MAX];
    cr_assert_str_eq(format_bytes(out, bytes), expected);
}

static void duration_is(uint64_t ns, const char *expected)
{
    char out[FORMAT_MAX];
    cr_assert_str_eq(format_duration(out, ns), expected);
}

Test(format, bytes_take_the_unit_that_people_use)
{
    bytes_are(0, "0 B");
    bytes_are(1023, "1023 B");
    bytes_are(1024, "1.0 KiB");
    bytes_are(4096 * 4, "16 KiB");
    bytes_are(64ull << 20, "64 MiB");
    bytes_are(4ull << 30, "4.0 GiB");
    bytes_are(1181116006, "1.1 GiB");
    bytes_are((6ull << 30) + (512ull << 20), "6.5 GiB");
    bytes_are(UINT64_MAX, "16.0 EiB");
}

Test(format, bytes_never_show_1024_of_a_unit)
{
    bytes_are((1ull << 20) - 1, "1.0 MiB");
    bytes_are((1ull << 30) - 1, "1.0 GiB");
    bytes_are(1023ull << 20, "1023 MiB");
    bytes_are(10ull * 1024 - 1, "10 KiB");
}

Test(format, durations_take_the_unit_that_people_use)
{
    duration_is(0, "0 us");
    duration_is(71400, "71 us");
    duration_is(999499, "999 us");
    duration_is(999500, "1.0 ms");
    duration_is(3100000, "3.1 ms");
    duration_is(99949999, "99.9 ms");
    duration_is(99950000, "100 ms");
    duration_is(437000000, "437 ms");
    duration_is(999500000, "1.0 s");
    duration_is(3900000000, "3.9 s");
    duration_is(119949999999, "119.9 s");
    duration_is(119950000000, "2 min 00 s");
    duration_is(3600000000000, "60 min 00 s");
}

Test(format, instants_are_rfc_3339)
{
    char out[FORMAT_MAX];
    cr_assert_str_eq(format_instant(out, 1700000000123456789), "2023-11-14T22:13:20.123Z");
    cr_assert_str_eq(format_instant(out, 0), "1970-01-01T00:00:00.000Z");
}
