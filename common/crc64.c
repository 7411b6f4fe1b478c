#include "common/crc64.h"

#define POLYNOMIAL 0x95ac9329ac4bc9b5ull /* with its bits in reverse */

uint64_t crc64(uint64_t crc, const void *data, size_t len)
{
    const unsigned char *at = data;
    for (; len > 0; len--) {
        crc ^= *at++;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ POLYNOMIAL : crc >> 1;
    }
    return crc;
}
