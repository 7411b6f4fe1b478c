/* save.h - the two files of a snapshot, as Firecracker writes them, and a start from them. */
#ifndef MINIVM_SAVE_H
#define MINIVM_SAVE_H

#include <stdbool.h>
#include <stddef.h>

#include "vm.h"

/*
 * For a VM that is stopped: first the state (state.h) is written whole and synced, then memory:
 * raw, one region behind the other. A failure leaves what was written by then. False: `why`.
 */
bool save_files(struct vm *vm, const char *state_path, const char *memory_path, char *why,
                size_t why_bytes);

/* Goes on from --vmstate: memory is there, or served by now. The VM is paused then. */
bool save_resume(struct vm *vm, char *why, size_t why_bytes);

#endif
