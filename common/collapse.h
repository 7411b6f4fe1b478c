/*
 * collapse.h - puts huge pages of another process together again (MADV_COLLAPSE from outside, Linux
 * 6.1), where something of ours has taken them apart: a restore that brings pages in one by one, a
 * snapshot that released a part. One huge page at a time, and failing softly: memory that stays in
 * small pages is slower, not wrong, and khugepaged may still do it.
 *
 * MADV_COLLAPSE asks neither the system's setting nor the memory's advice (but for MADV_NOHUGEPAGE,
 * and "deny" of shmem): the caller knows what had huge pages. And it makes memory real that is a
 * hole in the range: the caller looks first.
 */
#ifndef VMSNAP_COMMON_COLLAPSE_H
#define VMSNAP_COMMON_COLLAPSE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>

#include "common/target.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1; Debian 12's headers lack it */
#endif

#define COLLAPSE_BYTES (2ull << 20) /* a huge page of x86-64; aligned to that in the process */

enum collapse_result {
    COLLAPSE_DONE,      /* it is a huge page now, or was one */
    COLLAPSE_GONE,      /* ESRCH: the process has ended */
    COLLAPSE_AGAIN,     /* EAGAIN: a page is pinned, locked or on its way to swap; try later */
    COLLAPSE_NO_MEMORY, /* ENOMEM, EBUSY: no free huge page, or none left for the cgroup */
    COLLAPSE_REFUSED,   /* EINVAL and the like: not this memory (its mapping changed, is under a
                           userfaultfd's protection, or must not have huge pages), or not us */
};

/* False: this kernel can't. */
bool collapse_is_possible(void);

/*
 * Makes one huge page of the 2 MiB at `hva`. Any thread. Blocks for as long as it takes to find a
 * huge page and to copy 2 MiB (some hundred microseconds, more when memory has to be compacted),
 * for which the process's mmap_lock is held and who writes there waits.
 */
enum collapse_result collapse_unit(const struct target *t, uint64_t hva);

/* Of a run of them: whether to go on. */
struct collapse_run {
    uint64_t n_done, n_failed;
    unsigned no_memory; /* in a row */
};

/* The same, counted. False: the process is gone, or there are no huge pages to be had: each
 * attempt then compacts memory in vain. */
bool collapse_next(struct collapse_run *run, const struct target *t, uint64_t hva,
                   enum collapse_result *result);

#endif
