/*
 * firecracker_memory.h - where a Firecracker's guest memory lies in its process. Its API tells how
 * much there is and not where; so the mappings are looked through for those that memory of that
 * size is made of. What is not certain is never taken.
 */
#ifndef VMSNAP_COMMON_VMM_FIRECRACKER_MEMORY_H
#define VMSNAP_COMMON_VMM_FIRECRACKER_MEMORY_H

#include <stdint.h>

#include "common/error.h"
#include "common/target/region.h"
#include "common/target/target.h"

/*
 * The regions in the order of their offsets in a memory file, classified; without guest-physical
 * addresses. `version`: its own, "1.14.4", which tells how memory of more than 3 GiB is laid out;
 * what is none leaves that open. `maps`: what the user said, "ADDR:LEN[:NAME]" each,
 * NULL-terminated; NULL or empty: found out. Exit codes: 2 (not certain, with the candidates; or
 * nonsense in `maps`), 10, 14.
 */
int firecracker_find_memory(struct region_set *out, const struct target *t, uint64_t bytes,
                            const char *version, const char *const *maps, struct error *e);

#endif
