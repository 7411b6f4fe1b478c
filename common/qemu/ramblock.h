/*
 * ramblock.h - finds every ramblock of a running QEMU: names and lengths from `info ramblock`,
 * host addresses from smaps, `gpa2hva` and `info mtree -f` (QEMU 7.2 prints no HVA). A block that
 * can't be placed for certain is an error that names it, never a guess.
 */
#ifndef VMSNAP_COMMON_QEMU_RAMBLOCK_H
#define VMSNAP_COMMON_QEMU_RAMBLOCK_H

#include "common/qmp.h"
#include "common/target/region.h"
#include "common/target/target.h"

/* Regions in QEMU's order, classified. Blocks on QMP and /proc: milliseconds; not in the pause. The
 * caller ends with region_set_free(). */
int ramblocks_find(struct region_set *out, struct qmp *q, const struct target *t, int timeout_ms,
                   struct error *e);

#endif
