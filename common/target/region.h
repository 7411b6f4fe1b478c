/*
 * region.h - one block of guest memory in a running process: where it is, what kind of memory it
 * is, and how to read its pages without changing them. A QEMU ramblock, a Firecracker region, a
 * named range of any process.
 */
#ifndef VMSNAP_COMMON_REGION_H
#define VMSNAP_COMMON_REGION_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/target/target.h"

#define REGION_NAME_MAX 256

enum region_kind {
    REGION_ANON = 1,         /* private anonymous */
    REGION_SHARED = 2,       /* shared: memfd, shmem, hugetlbfs; the file is the truth */
    REGION_PRIVATE_FILE = 3, /* private mapping of shmem or hugetlbfs: pages copied on write */
};

struct region {
    char name[REGION_NAME_MAX]; /* QEMU: the ramblock's idstr */
    uint64_t hva;               /* in the target; 0 while it is only known from an image */
    uint64_t bytes;             /* saved length (QEMU: used_length), a multiple of 4096 */
    uint64_t max_bytes;         /* mapped length (QEMU: max_length) */
    uint64_t page_bytes;        /* 4096, or the huge page size of hugetlbfs */
    enum region_kind kind;
    bool mergeable;     /* KSM may merge it (VmFlags mg) */
    bool locked;        /* mlocked (VmFlags lo) */
    int fd;             /* REGION_SHARED, REGION_PRIVATE_FILE: our copy of the file; -1 */
    uint64_t fd_offset; /* where the region starts in that file */
};

/* Fills kind, page_bytes, mergeable, locked, fd, fd_offset of a region whose hva and lengths are
 * known. The mapping must cover it whole. Refuses memory that userfaultfd can't protect (files of
 * a disk file system, device memory) with exit code 14. The caller ends with region_close(). */
int region_classify(struct region *r, const struct target *t, const struct mapping_list *maps,
                    struct error *e);
void region_close(struct region *r);

/* `bytes` from a page's start on, up to the end of a page: of hugetlbfs the saved length may end
 * within one, and the kernel takes only whole ones. */
static inline uint64_t region_whole_pages(const struct region *r, uint64_t bytes)
{
    return (bytes + r->page_bytes - 1) / r->page_bytes * r->page_bytes;
}

/*
 * Copies `n_pages` (4 KiB, at most 64) at `offset` bytes into the region to `buf`. Never allocates
 * memory in the target and never waits for a userfault: absent pages come out as zeros without
 * being touched. Bit i of *zero / *poisoned (may be NULL): page i of private anonymous memory is
 * absent / page i is poisoned (then zeros in buf). Returns 0 or -errno (-ESRCH: the process is
 * gone). Any thread, no allocation, no lock: what the fault path uses.
 */
int region_read(const struct region *r, const struct target *t, uint64_t offset, unsigned n_pages,
                void *buf, uint64_t *zero, uint64_t *poisoned);

/* A guest-physical range and the region behind it. */
struct gpa_range {
    uint64_t gpa, bytes;
    uint32_t region; /* index in the region table */
    uint32_t flags;  /* GPA_ROM */
    uint64_t offset; /* in the region */
};
#define GPA_ROM 1u

/* All memory of a VM. */
struct region_set {
    struct region *items;
    uint32_t count;
    struct gpa_range *gpa; /* what the guest sees of them, ascending */
    uint32_t n_gpa;
};

/* Closes and frees what is in it. */
void region_set_free(struct region_set *set);

#endif
