/* hazards_private.h - what the files of hazards.c share. Private to common/qemu/hazards*.c. */
#ifndef VMSNAP_COMMON_QEMU_HAZARDS_PRIVATE_H
#define VMSNAP_COMMON_QEMU_HAZARDS_PRIVATE_H

#include <stdint.h>

#include "common/qemu/hazards.h"

struct hazard_search {
    const struct hazard_scope *scope;
    uint64_t deadline_ns;
};

/* Each looks for one kind: sets h->found and h->reason. -errno only when it cannot tell. */
int hazard_look_disks(struct hazard_search *s, struct hazard *h, struct error *e);
int hazard_look_migration(struct hazard_search *s, struct hazard *h, struct error *e);

/* Marks a hazard as found, with the reason. */
void hazard_found(struct hazard *h, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
