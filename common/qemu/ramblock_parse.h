/*
 * ramblock_parse.h - reads what QEMU's human monitor prints about memory: `info ramblock`,
 * `info mtree -f`, `gpa2hva`. Nothing here talks to anybody. Private to common/qemu.
 *
 * The texts are meant for people and grew columns over the years: whatever does not fit exactly is
 * an error, never skipped.
 */
#ifndef VMSNAP_COMMON_QEMU_RAMBLOCK_PARSE_H
#define VMSNAP_COMMON_QEMU_RAMBLOCK_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/target/region.h"

#define RAMBLOCK_MAX 4096u
#define RAMBLOCK_NO_HVA UINT64_MAX

/* A line of `info ramblock`. */
struct ramblock_line {
    char name[REGION_NAME_MAX]; /* the idstr; empty: QEMU does not migrate this block */
    uint64_t page_bytes;
    uint64_t offset; /* in QEMU's ram_addr_t space: unique */
    uint64_t used, total;
    uint64_t hva; /* QEMU 8.0 and later print it; else RAMBLOCK_NO_HVA */
};

/* A range of guest-physical memory behind which there is RAM or ROM. */
struct flat_range {
    uint64_t gpa, bytes;
    uint64_t offset;              /* in its memory region */
    char region[REGION_NAME_MAX]; /* the memory region's name: the last part of an idstr */
    bool rom;
};

/* *out is the caller's to free(). -EPROTO with exit code 10 when the text is not understood. */
int ramblock_parse_list(const char *text, struct ramblock_line **out, size_t *count,
                        struct error *e);

/* The ranges that the CPUs see: the flat view of address space "memory". As above. */
int ramblock_parse_flat(const char *text, struct flat_range **out, size_t *count, struct error *e);

/* True and *hva when the text is an address; false when it says that there is no RAM. */
bool ramblock_parse_gpa2hva(const char *text, uint64_t *hva);

/* True when a block of this idstr can belong to a memory region of this name. */
bool ramblock_name_fits(const char *idstr, const char *region);

#endif
