/*
 * target.h - another process and its memory, seen from outside: its identity (pidfd), its mappings
 * (/proc/PID/smaps), what is present (/proc/PID/pagemap), and copies out of it.
 */
#ifndef VMSNAP_COMMON_TARGET_H
#define VMSNAP_COMMON_TARGET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "common/error.h"

struct target {
    pid_t pid;
    int pidfd;      /* poll it: POLLIN when the process has ended */
    int proc_fd;    /* /proc/PID, O_PATH | O_DIRECTORY: never another process's */
    int pagemap_fd; /* /proc/PID/pagemap */
    int mem_fd;     /* /proc/PID/mem, read only */
};

/* One that was not opened: target_close() takes it. */
#define TARGET_NONE ((struct target){.pidfd = -1, .proc_fd = -1, .pagemap_fd = -1, .mem_fd = -1})

/* Opens the process. -ESRCH / -EPERM with exit code 10. The caller closes it
 * with target_close(). */
int target_open(struct target *t, pid_t pid, struct error *e);
void target_close(struct target *t);

/*
 * Takes the process for one snapshot: -EBUSY with exit code 11 if another vmsnap has it. Held by t
 * and by those that inherit it across fork(), until the last of them closes it or ends. It is an
 * flock() of the process's own pagemap file, so it leaves nothing behind, needs the right to look
 * into the process, and ends with it. Between pid namespaces with a /proc of their own it does not
 * exclude; there userfaultfd's own EBUSY does. Does not block.
 */
int target_lock(const struct target *t, struct error *e);

/* True while the process has not ended (a zombie has ended). Does not block. */
bool target_alive(const struct target *t);

/* Copies fd number `fd` of the target into this process (pidfd_getfd), O_CLOEXEC. -errno. */
int target_get_fd(const struct target *t, int fd);

/* Whether fd number `fd` of the target is what /proc/PID/fd calls `link`. -ENOENT: it has none of
 * that number; or -errno. */
int target_fd_is(const struct target *t, int fd, const char *link, bool *same);

struct mapping {
    uint64_t start, end; /* HVA in the target */
    uint64_t offset;     /* in its file */
    uint64_t inode;
    uint32_t dev_major, dev_minor;
    uint64_t page_bytes;      /* KernelPageSize */
    uint64_t anon_huge_bytes; /* AnonHugePages + ShmemPmdMapped */
    bool readable, writable, executable, shared;
    bool dontfork;                          /* VmFlags dc: QEMU marks guest RAM so */
    bool mergeable;                         /* mg: KSM */
    bool hugepage;                          /* hg */
    bool locked;                            /* lo */
    bool uffd_missing, uffd_wp, uffd_minor; /* um, uw, ui: a userfaultfd has it already */
    bool io, pfnmap;                        /* io, pf: device memory */
    bool hugetlb;                           /* ht */
    bool noreserve;                         /* nr: MAP_NORESERVE */
    char name[256]; /* file name or [anon...] as the kernel prints it, cut */
};

struct mapping_list {
    struct mapping *items;
    size_t count;
};

/* Reads /proc/PID/smaps. Allocates; free with mapping_list_free(). Takes milliseconds for a big
 * process: not in the pause. */
int target_mappings(const struct target *t, struct mapping_list *out, struct error *e);

/* The same from /proc/PID/maps: address, permissions, file and name only (page_bytes is 4096, the
 * VmFlags are all false). Tens of microseconds. */
int target_mappings_brief(const struct target *t, struct mapping_list *out, struct error *e);

/* Parses either file. -EINVAL: not such a file; -ESRCH: empty, the process has ended. */
int mapping_list_parse(FILE *f, struct mapping_list *out);
void mapping_list_free(struct mapping_list *list);

/* The mapping that contains `hva`, or NULL. */
const struct mapping *mapping_find(const struct mapping_list *list, uint64_t hva);

/* What a pagemap entry says (kernel doc admin-guide/mm/pagemap, markers decoded). */
enum page_presence {
    PAGE_ABSENT,   /* never touched here, or only a write-protect marker */
    PAGE_PRESENT,  /* in memory or in swap (hardware poison too: it shows when read) */
    PAGE_POISONED, /* a poison marker, or swap that was lost */
};

/* marker_type: kernel_features.marker_type. */
enum page_presence target_decode_pagemap(uint64_t entry, unsigned marker_type);

/* Looks `n_pages` (4 KiB each) up from `hva` on, without touching them. One pread per 512 pages.
 * Any thread; does not allocate. -ESRCH: the process has ended, is ending, or runs another program
 * now; -EFAULT: beyond its address space. Needs CAP_SYS_ADMIN (kernel_require() checks it): without
 * it markers look like swapped pages. */
int target_presence(const struct target *t, uint64_t hva, size_t n_pages, enum page_presence *out);

/* Categories of pages, with the kernel's values (linux/fs.h, 6.7). */
#define TARGET_PRESENT (1u << 3)
#define TARGET_SWAPPED (1u << 4) /* or a marker */
#define TARGET_ZERO (1u << 5)    /* the zero page, or the huge one */
#define TARGET_HUGE (1u << 6)    /* mapped by a huge entry */

/* Pages that are alike; as the kernel gives them. */
struct target_pages {
    uint64_t start, end; /* HVA */
    uint64_t categories; /* of those that were to be told */
};

struct target_query {
    uint64_t any;       /* pages of at least one of these categories */
    uint64_t none;      /* and of none of these */
    uint64_t tell;      /* what to tell of them, and to part them by */
    uint64_t max_pages; /* so many at most; 0: any number */
};

/*
 * PAGEMAP_SCAN (kernel_features.pagemap_scan, Linux 6.7): the pages of [start, end) that the query
 * asks for, up to `room` runs of them, and how far it looked (*walked). Returns their number or
 * -errno. Holds the target's mmap_lock for reading, so in pieces where much is mapped. An address
 * space that is gone looks empty, and a process that has ended too.
 */
int target_scan(const struct target *t, uint64_t start, uint64_t end, const struct target_query *q,
                struct target_pages *out, size_t room, uint64_t *walked);

/* target_presence() for many pages, by PAGEMAP_SCAN where the kernel has it: two calls, and the
 * less to do the more of it is a hole. */
int target_presence_scan(const struct target *t, uint64_t hva, size_t n_pages,
                         enum page_presence *out);

/* How far a hole goes on from `hva`: nothing in [hva, *hole_end) is present. *hole_end is hva where
 * there is no hole, or the kernel can't tell cheaply; at most `end`. */
int target_hole_end(const struct target *t, uint64_t hva, uint64_t end, uint64_t *hole_end);

/* process_vm_readv. Returns bytes copied (short at the first page that faults) or -errno. Blocks
 * if it touches a page that waits for a userfaultfd MISSING event. */
ssize_t target_read(const struct target *t, uint64_t hva, void *buf, size_t len);

/* process_vm_writev, same rules. */
ssize_t target_write(const struct target *t, uint64_t hva, const void *buf, size_t len);

/* A "key:  value" line of /proc/PID/status, the value as a number. -ENOENT when absent. */
int target_status_number(const struct target *t, const char *key, uint64_t *value);

/* The same of another file below /proc/PID ("task/TID/status"), in another base. */
int target_status_number_of(const struct target *t, const char *file, const char *key, int base,
                            uint64_t *value);

#endif
