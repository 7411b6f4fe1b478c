/* touches.h - when the guest was done with its N-th write, in JSON. */
#ifndef MINIVM_TOUCHES_H
#define MINIVM_TOUCHES_H

#include <jansson.h>

#include "vm.h"

/* What x-touches answers (README.md); `of` is its argument. A new reference; NULL: `of` is not as
 * it must be. Main thread. */
json_t *touches_get(struct vm *vm, const json_t *of);

#endif
