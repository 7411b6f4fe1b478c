/* blob.c - the linked guest (guest.ld) becomes part of the program. */
#include "blob.h"

__asm__(".section .rodata\n"
        ".globl blob_start, blob_end\n"
        "blob_start:\n"
        ".incbin \"" MINIVM_BLOB_FILE "\"\n"
        "blob_end:\n"
        ".previous\n");
