/* blob.c - the linked guest (guest.ld) becomes part of the program. */
#include "blob.h"

__asm__(".section .rodata\n"
        ".globl blob_code, blob_bytes\n"
        "blob_code:\n"
        ".incbin \"" MINIVM_BLOB_FILE "\"\n"
        "1:\n"
        ".balign 8\n"
        "blob_bytes:\n"
        ".quad 1b - blob_code\n"
        ".previous\n");
