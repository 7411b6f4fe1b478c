/*
 * ramblock_place.h - decides where in QEMU's address space each ramblock lies. Private to
 * common/qemu.
 */
#ifndef VMSNAP_COMMON_QEMU_RAMBLOCK_PLACE_H
#define VMSNAP_COMMON_QEMU_RAMBLOCK_PLACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/qemu/ramblock_parse.h"
#include "common/target/target.h"

struct placement {
    const struct ramblock_line *block;
    uint64_t hva;    /* RAMBLOCK_NO_HVA until placed */
    const char *how; /* for -vv: which evidence */
};

/* A stretch of mappings that may hold a block: adjacent pieces of one file or of none. */
struct span {
    uint64_t start, end;
};

struct span_list {
    struct span *items;
    size_t count;
};

/* The stretches that QEMU marked MADV_DONTFORK. The caller ends with span_list_free(). */
int span_list_find(struct span_list *out, const struct mapping_list *maps, struct error *e);
void span_list_free(struct span_list *spans);

/* Puts a block at an address that QEMU itself said: it must lie in a stretch that is still free.
 * -EINVAL when it does not (no error text). */
int placement_set(struct placement *p, uint64_t hva, const char *how, struct span_list *spans);

/* Places what has no address yet: by QEMU's own records, by unique size, by content.
 * Fails with exit code 10, naming the block, when one remains uncertain. */
int placement_rest(struct placement *items, size_t count, struct span_list *spans,
                   const struct target *t, const struct mapping_list *maps, struct error *e);

#endif
