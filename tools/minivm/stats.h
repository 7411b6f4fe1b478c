/* stats.h - what the guest measured, in JSON. Everything is since the start or the last reset. */
#ifndef MINIVM_STATS_H
#define MINIVM_STATS_H

#include <jansson.h>

#include "vm.h"

/* With `full` also the buckets and the slices of 100 ms. A new reference. */
json_t *stats_get(struct vm *vm, bool full);

/* From now on nothing of before counts, but for wrong pages. */
void stats_reset(struct vm *vm);

#endif
