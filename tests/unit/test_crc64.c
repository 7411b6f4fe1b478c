/* The check sum of Firecracker's state files, by known sums. */
#include <criterion/criterion.h>
#include <string.h>

#include "common/crc64.h"

Test(crc64, known_sums)
{
    unsigned char same[16];
    memset(same, 123, sizeof(same));
    cr_assert_eq(crc64(0, "123456789", 9), 0xe9c6d914c4b8d9caull);
    cr_assert_eq(crc64(0, same, sizeof(same)), 0x29d5357216326566ull);
    cr_assert_eq(crc64(0, "", 0), 0);
}

Test(crc64, pieces_and_own_sum)
{
    unsigned char data[108];
    for (size_t i = 0; i < 100; i++)
        data[i] = (unsigned char)(i * 7);
    uint64_t sum = crc64(crc64(0, data, 33), data + 33, 67);
    cr_assert_eq(sum, crc64(0, data, 100));
    memcpy(data + 100, &sum, sizeof(sum)); /* little-endian */
    cr_assert_eq(crc64(0, data, sizeof(data)), 0);
    data[50] ^= 1;
    cr_assert_neq(crc64(0, data, sizeof(data)), 0);
}
