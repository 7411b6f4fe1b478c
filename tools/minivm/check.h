/*
 * check.h - is all of RAM as the guest left it? For a VM that is stopped.
 *
 * Each page is looked at as a whole. What no single page can show, that it is older than it should
 * be, is shown by the sum that each vCPU keeps over its share, and for a sequential guest by
 * neighbours that are more than one step apart, or that step up.
 */
#ifndef MINIVM_CHECK_H
#define MINIVM_CHECK_H

#include <stdint.h>

#include "memory.h"

struct check_result {
    uint64_t pages, written_pages; /* looked at; of these not of generation 0 */
    uint64_t wrong_pages, first_wrong;
    uint64_t wrong_steps;  /* between neighbours, sequential guests only */
    uint64_t stale_shares; /* vCPUs whose sum is another */
};

/*
 * `absent_is_zero`: a page that is not there was never written; it is not touched, and so stays
 * absent. False while memory is being restored: then it is demanded. -EBADMSG: not even the state
 * pages are right; else -errno.
 */
int check_memory(const struct memory *m, unsigned cpus, bool absent_is_zero,
                 struct check_result *result);

#endif
