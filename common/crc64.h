/* crc64.h - the cyclic redundancy check of 64 bits that Firecracker ends its state files with (the
 * polynomial of Jones, 0xad93d23594c935a9, reflected; as Redis has it). */
#ifndef VMSNAP_COMMON_CRC64_H
#define VMSNAP_COMMON_CRC64_H

#include <stddef.h>
#include <stdint.h>

/* Goes on from `crc`; 0 to begin with. Of data that end with their own sum (little-endian) the
 * result is 0. */
uint64_t crc64(uint64_t crc, const void *data, size_t len);

#endif
