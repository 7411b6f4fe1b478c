/*
 * kernel.h - what this kernel can do, asked once, in one place. `vmsnap check`, the tests' skips
 * and the code paths that have another way all use the same answer. Test builds can hide features
 * by their names (VMSNAP_MASK_FEATURES: the names of kernel_list() without "kernel.", and
 * "wp-unpopulated") to run the other way on a new kernel.
 *
 * Constants that Debian 12's <linux/userfaultfd.h> and <linux/fs.h> lack are in common/uffd.h.
 */
#ifndef VMSNAP_COMMON_KERNEL_H
#define VMSNAP_COMMON_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

struct kernel_features {
    bool userfaultfd;       /* the syscall or /dev/userfaultfd works for us */
    bool no_right;          /* it is there, but not for us */
    bool dev_userfaultfd;   /* /dev/userfaultfd can be opened (6.1+) */
    uint64_t uffd_features; /* bits of struct uffdio_api.features, masked ones removed */
    bool wp_anon;           /* UFFD_FEATURE_PAGEFAULT_FLAG_WP */
    bool wp_shmem;          /* UFFD_FEATURE_WP_HUGETLBFS_SHMEM (5.19+) */
    bool minor_shmem;       /* UFFD_FEATURE_MINOR_SHMEM (5.14+) */
    bool minor_hugetlb;     /* UFFD_FEATURE_MINOR_HUGETLBFS (5.13+) */
    bool event_remove;      /* UFFD_FEATURE_EVENT_REMOVE and EVENT_UNMAP */
    bool poison;            /* UFFDIO_POISON (6.6+) */
    bool pagemap_scan;      /* PAGEMAP_SCAN (6.7+) */
    bool collapse;          /* MADV_COLLAPSE through process_madvise (6.1+) */
    bool pidfd_getfd;       /* 5.6+ */
    bool pagemap_entries;   /* pagemap shows us frames and swap entries (CAP_SYS_ADMIN) */
    unsigned marker_type;   /* the swap type in a pagemap entry that says "marker" */
};

#define KERNEL_MARKER_DEFAULT 31u

struct kernel_item {
    const char *name; /* stable, the name in `vmsnap check`, e.g. "kernel.wp-shmem" */
    bool ok;
    bool required;    /* without it vmsnap does not run at all */
    bool is_right;    /* the kernel has it; what is missing is the right to it */
    char reason[160]; /* what it is for, and what is done without it */
};

/* Asks the kernel. The answer is kept: later calls are free. Any thread. */
const struct kernel_features *kernel_probe(void);

/* Lists every feature as an item for `vmsnap check`. Returns how many were written (<= max). */
size_t kernel_list(struct kernel_item *items, size_t max);

/* Opens /dev/userfaultfd (O_CLOEXEC), or -errno. The caller closes it. */
int kernel_open_dev_userfaultfd(void);

/* 0 when snapshot and restore can work here; else -ENOTSUP with exit code 12 and the cause. */
int kernel_require(struct error *e);

#endif
