/* stream.h - the migration stream that gives a fresh QEMU the saved device state. */
#ifndef VMSNAP_RESTORE_QEMU_STREAM_H
#define VMSNAP_RESTORE_QEMU_STREAM_H

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/image/format.h"

/*
 * Builds it from what xen-save-devices-state wrote: *out is malloc()ed, the caller's. `machine`:
 * the versioned name. Exit code 13 when the state is not such a stream.
 */
int stream_build(void **out, size_t *len, const void *state, uint64_t state_bytes,
                 const char *machine, const struct image_region *regions, uint32_t n_regions,
                 struct error *e);

#endif
