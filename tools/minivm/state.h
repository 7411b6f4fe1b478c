/*
 * state.h - save-state and load-state. The file: a header, then per vCPU a copy of its state page's
 * start and the accelerator's own record. The copy shows at the load that memory is of the same
 * instant. Written and read by the same build of minivm: the guest's code is part of the VMM.
 */
#ifndef MINIVM_STATE_H
#define MINIVM_STATE_H

#include <stddef.h>
#include <stdint.h>

#include "vm.h"

/* Both for a VM that is stopped, main thread. False: `why`. */
bool state_save(struct vm *vm, int fd, uint64_t *bytes, char *why, size_t why_bytes);
bool state_load(struct vm *vm, int fd, char *why, size_t why_bytes);

/* Sets those options that are as the state says: memory, regions, vCPUs, and the accelerator if
 * none was asked for. False: `why`. */
bool state_peek(const char *path, struct options *o, char *why, size_t why_bytes);

#endif
