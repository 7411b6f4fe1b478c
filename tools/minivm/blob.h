/* blob.h - the guest's code for KVM, as it is copied into the machine's memory. */
#ifndef MINIVM_BLOB_H
#define MINIVM_BLOB_H

#include <stdint.h>

extern const unsigned char blob_code[];
extern const uint64_t blob_bytes;

#endif
