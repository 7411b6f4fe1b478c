/* hazards.h - the hazards (common/hazards.h) of a QEMU: those that the kernel shows, and those that
 * QEMU says through QMP. */
#ifndef VMSNAP_COMMON_QEMU_HAZARDS_H
#define VMSNAP_COMMON_QEMU_HAZARDS_H

#include <jansson.h>

#include "common/hazards.h"
#include "common/qmp.h"

/* Looks for every hazard, as hazards_find() does. `described` is machine_describe() of the same VM,
 * or NULL: then it is asked. timeout_ms is for all questions together. Not in the pause. */
int qemu_hazards_find(struct hazard *out, size_t *count, const struct hazard_scope *scope,
                      struct qmp *q, const json_t *described, int timeout_ms, struct error *e);

#endif
