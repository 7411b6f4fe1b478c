/*
 * collapse.h - puts huge pages of another process together again (MADV_COLLAPSE from outside, Linux
 * 6.1), where something of ours has taken them apart: a restore that brings pages in one by one, a
 * snapshot that released a part. Failing softly: memory that stays in small pages is slower, not
 * wrong, and khugepaged may still do it.
 *
 * MADV_COLLAPSE asks neither the system's setting nor the memory's advice (but for MADV_NOHUGEPAGE,
 * and "deny" of shmem): the caller knows what had huge pages. And it makes memory real that is a
 * hole in the range: the caller looks first. What is discarded after that look and before the
 * kernel comes to it (a balloon that inflates just then) is made real again, until it is discarded
 * anew.
 */
#ifndef VMSNAP_COMMON_COLLAPSE_H
#define VMSNAP_COMMON_COLLAPSE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>

#include "common/target/target.h"

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
 * A run of them. The kernel first drains what each CPU holds of pages that are on their way to its
 * lists, and waits for a worker thread on each, with the process's mmap_lock held for reading: next
 * to nothing on an idle host, but a second and more where 30 threads wait for 2 CPUs (measured).
 * Then it makes one huge page after the other: 2 MiB are copied while mmap_lock is held for writing
 * and who writes there waits, some hundred microseconds, more when memory has to be compacted
 * first. So a call takes few where that is quick, and more where the wait is what is long.
 */
struct collapse_run {
    unsigned batch;     /* for the next call; 0: the first */
    unsigned no_memory; /* failures in a row */
    bool keep_few;      /* never more than the fewest: what was looked up may change */
    uint64_t n_calls, n_failed, busy_ns, longest_ns;
};

#define COLLAPSE_MOST 64u /* in a call */

/* How many the next call should take. */
unsigned collapse_batch(const struct collapse_run *run);

/*
 * Makes huge pages of the `n` times 2 MiB at `hva`; what is huge already costs nothing. Any thread,
 * blocks as above. *result is that of the last one that failed, the others may be done. False: no
 * use in going on, for the process is gone, or there are no huge pages to be had (each attempt then
 * compacts memory in vain).
 */
bool collapse_next(struct collapse_run *run, const struct target *t, uint64_t hva, unsigned n,
                   enum collapse_result *result);

#endif
