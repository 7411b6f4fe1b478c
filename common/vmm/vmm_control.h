/*
 * vmm_control.h - what snapshot and restore both ask a VMM that speaks the protocol of docs/vmm.md
 * (QMP's wire form, a handful of commands of its own). Nothing that it says is believed: texts and
 * numbers are bounded here, addresses are held against /proc.
 */
#ifndef VMSNAP_COMMON_VMM_VMM_CONTROL_H
#define VMSNAP_COMMON_VMM_VMM_CONTROL_H

#include <jansson.h>
#include <stdbool.h>

#include "common/error.h"
#include "common/qmp.h"
#include "common/target/region.h"
#include "common/target/target.h"

/* True when the greeting is of such a VMM, of whatever version of the protocol. */
bool vmm_control_greets(const struct qmp *q);

/* query-vm. *answer is a new reference; its texts and the number of its CPUs are good, its "memory"
 * is for vmm_control_find_memory() to check. Exit code 10: it speaks another version of the
 * protocol, or its answer makes no sense. */
int vmm_control_query(json_t **answer, struct qmp *q, int timeout_ms, struct error *e);

/*
 * The blocks of an answer, found and classified in the process. Exit code 10 names the block that
 * has no good name, length or address, overlaps another, or is not mapped; 14 memory that can't be
 * write-protected. Reads /proc: not in the pause. The caller ends with region_set_free().
 */
int vmm_control_find_memory(struct region_set *out, const json_t *answer, const struct target *t,
                            struct error *e);

/* The description for the image (docs/format.md), from an answer and the run state. *out is a new
 * reference. */
int vmm_control_describe(json_t **out, const json_t *answer, const char *status,
                         const struct target *t, struct error *e);

/* True when a description (of an image, say) is of such a VM. */
bool vmm_control_describes(const json_t *description);

/* Compares what the guest of `recorded` depends on with a VMM's answer: exit code 15 and the first
 * difference. `recorded` comes from a file: whatever it holds does no harm. */
int vmm_control_compare(const json_t *recorded, const json_t *answer, struct error *e);

#endif
