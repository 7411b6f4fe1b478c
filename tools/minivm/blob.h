/* blob.h - the guest's code for KVM, as it is copied into the machine's memory. */
#ifndef MINIVM_BLOB_H
#define MINIVM_BLOB_H

extern const unsigned char blob_start[], blob_end[];

#endif
