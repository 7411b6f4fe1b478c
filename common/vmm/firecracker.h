/*
 * firecracker.h - images of a Firecracker: who starts the VM is not vmsnap but Firecracker itself,
 * which asks a vmsnap that listens for its memory. Snapshot, import and restore agree here on what
 * the image says of that.
 */
#ifndef VMSNAP_COMMON_VMM_FIRECRACKER_H
#define VMSNAP_COMMON_VMM_FIRECRACKER_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* A Firecracker's state file has some 10 KiB and more per vCPU and device. */
#define FIRECRACKER_MAX_STATE_BYTES (64u << 20)

/* The region of an imported memory file: a handoff's `offset` is an offset into it. */
#define FIRECRACKER_REGION_NAME "mem"

/* The least that an image of one says (docs/format.md); new reference, NULL when
 * memory is short. */
json_t *firecracker_describe(void);

/* True when a description (of an image, say) is of such a VM. */
bool firecracker_describes(const json_t *description);

#endif
