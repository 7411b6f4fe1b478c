/*
 * kernel.c - asks the kernel what it can do, by doing it on memory of our own. Nothing is left
 * behind: every probe closes and unmaps what it made.
 */
#include "common/kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/target/collapse.h"
#include "common/testhook.h"
#include "common/uffd.h"

#define PAGE_BYTES 4096ul

static struct kernel_features features;

int kernel_open_dev_userfaultfd(void)
{
    if (TESTHOOK_MASKED("dev-userfaultfd"))
        return -ENOENT;
    int fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    return fd >= 0 ? fd : -errno;
}

/* A userfaultfd for our own memory, whichever way works. */
static int probe_open(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd >= 0)
        return fd;
    int saved = errno;
    CLEANUP_FD int dev = kernel_open_dev_userfaultfd();
    if (dev < 0)
        return -saved;
    fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    return fd >= 0 ? fd : -errno;
}

/* Removes the bits of hidden features, by the names that kernel_list() gives. */
static uint64_t mask_features(uint64_t bits)
{
    static const struct {
        const char *name;
        uint64_t bits;
    } masks[] = {
        {"wp-anon", UFFD_FEATURE_PAGEFAULT_FLAG_WP},
        {"wp-shmem", UFFD_FEATURE_WP_HUGETLBFS_SHMEM},
        {"minor-shmem", UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_MINOR_HUGETLBFS},
        {"event-remove", UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP},
        {"wp-unpopulated", UFFD_FEATURE_WP_UNPOPULATED},
        {"poison", UFFD_FEATURE_POISON},
    };
    for (size_t i = 0; i < sizeof(masks) / sizeof(masks[0]); i++) {
        if (TESTHOOK_MASKED(masks[i].name))
            bits &= ~masks[i].bits;
    }
    return bits;
}

static void probe_userfaultfd(struct kernel_features *f)
{
    CLEANUP_FD int dev = kernel_open_dev_userfaultfd();
    f->dev_userfaultfd = dev >= 0;
    CLEANUP_FD int fd = probe_open();
    f->no_right = fd == -EPERM || fd == -EACCES;
    struct uffdio_api api = {.api = UFFD_API};
    if (TESTHOOK_MASKED("userfaultfd") || fd < 0 || ioctl(fd, UFFDIO_API, &api) != 0)
        return;
    uint64_t bits = mask_features(api.features);
    uint64_t remove = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;
    f->userfaultfd = true;
    f->uffd_features = bits;
    f->wp_anon = bits & UFFD_FEATURE_PAGEFAULT_FLAG_WP;
    f->wp_shmem = bits & UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
    f->minor_shmem = bits & UFFD_FEATURE_MINOR_SHMEM;
    f->minor_hugetlb = bits & UFFD_FEATURE_MINOR_HUGETLBFS;
    f->event_remove = (bits & remove) == remove;
    f->poison = bits & UFFD_FEATURE_POISON;
}

/* Frame numbers and swap entries read as 0 without CAP_SYS_ADMIN (admin-guide/mm/pagemap). */
static bool probe_pagemap_entries(int pagemap)
{
    volatile char here = 1;
    uint64_t entry = 0;
    off_t at = (off_t)((uintptr_t)&here / PAGE_BYTES * sizeof(entry));
    return pread(pagemap, &entry, sizeof(entry), at) == (ssize_t)sizeof(entry) &&
           (entry & ((1ull << 55) - 1)) != 0;
}

static void probe_pagemap(struct kernel_features *f)
{
    CLEANUP_FD int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pagemap < 0)
        return;
    f->pagemap_entries = probe_pagemap_entries(pagemap) && !TESTHOOK_MASKED("pagemap");
    struct pm_scan_arg scan = {.size = sizeof(scan)};
    f->pagemap_scan = ioctl(pagemap, PAGEMAP_SCAN, &scan) >= 0 && !TESTHOOK_MASKED("pagemap-scan");
}

/* The pagemap entry of a hole in shared memory that `fd` write-protects: only a
 * marker. 0: failed. */
static uint64_t armed_hole_entry(int fd, int pagemap, void *hole)
{
    uint64_t entry = 0;
    off_t at = (off_t)((uintptr_t)hole / PAGE_BYTES * sizeof(entry));
    int r = uffd_enable(fd, UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
    if (r == 0)
        r = uffd_register(fd, (uintptr_t)hole, PAGE_BYTES, UFFDIO_REGISTER_MODE_WP, NULL);
    if (r == 0)
        r = uffd_protect(fd, (uintptr_t)hole, PAGE_BYTES);
    if (r == 0 && pread(pagemap, &entry, sizeof(entry), at) != (ssize_t)sizeof(entry))
        return 0;
    return entry;
}

/*
 * Which "swap type" is not swap but a marker. The last one, 31, since Linux 6.2; in 6.1 that is an
 * entry of its own for lost swap, and markers are 30 (linux/swap.h), which later became a device
 * entry. So ask: make a marker and look.
 */
static unsigned probe_marker_type(void)
{
    const uint64_t present = 1ull << 63, swapped = 1ull << 62, type_mask = 31;
    CLEANUP_FD int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    CLEANUP_FD int fd = probe_open();
    void *hole = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (hole == MAP_FAILED)
        return KERNEL_MARKER_DEFAULT;
    uint64_t entry = fd >= 0 && pagemap >= 0 ? armed_hole_entry(fd, pagemap, hole) : 0;
    munmap(hole, PAGE_BYTES);
    bool is_marker = !(entry & present) && (entry & swapped);
    return is_marker ? (unsigned)(entry & type_mask) : KERNEL_MARKER_DEFAULT;
}

/* MADV_COLLAPSE of one huge page of ours, through process_madvise. No free huge page (ENOMEM,
 * EAGAIN, EBUSY) still says that the call is known; EINVAL says it is not. */
static bool probe_collapse(void)
{
    if (TESTHOOK_MASKED("collapse"))
        return false;
    CLEANUP_FD int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    char *map =
        mmap(NULL, 2 * COLLAPSE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (self < 0 || map == MAP_FAILED)
        return false;
    char *huge = (char *)(((uintptr_t)map + COLLAPSE_BYTES - 1) & ~(COLLAPSE_BYTES - 1));
    *(volatile char *)huge = 1;
    struct iovec iov = {.iov_base = huge, .iov_len = COLLAPSE_BYTES};
    long r = syscall(SYS_process_madvise, self, &iov, 1ul, MADV_COLLAPSE, 0u);
    bool known = r >= 0 || errno == ENOMEM || errno == EAGAIN || errno == EBUSY;
    munmap(map, 2 * COLLAPSE_BYTES);
    return known;
}

static bool probe_pidfd_getfd(void)
{
    if (TESTHOOK_MASKED("pidfd-getfd"))
        return false;
    return syscall(SYS_pidfd_getfd, -1, 0, 0) < 0 && errno == EBADF;
}

static void probe_all(void)
{
    probe_userfaultfd(&features);
    probe_pagemap(&features);
    features.marker_type = probe_marker_type();
    features.collapse = probe_collapse();
    features.pidfd_getfd = probe_pidfd_getfd();
}

const struct kernel_features *kernel_probe(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, probe_all);
    return &features;
}

/* What is asked for, and why. `without`: what happens when it is missing. */
struct item_text {
    const char *name;
    size_t offset; /* of the bool in struct kernel_features */
    bool required;
    const char *purpose, *without;
    bool of_userfaultfd; /* can't be asked for without a userfaultfd */
};

static const char no_right_text[] = "needs CAP_SYS_PTRACE or access to /dev/userfaultfd";

#define ITEM(field) offsetof(struct kernel_features, field)

static const struct item_text item_texts[] = {
    {"kernel.userfaultfd", ITEM(userfaultfd), true, "memory is tracked with it",
     "needs a kernel with CONFIG_USERFAULTFD", false},
    {"kernel.dev-userfaultfd", ITEM(dev_userfaultfd), false,
     "a VM process without privileges gets its userfaultfd from /dev/userfaultfd",
     "only one that may call userfaultfd() can be attached to", false},
    {"kernel.wp-anon", ITEM(wp_anon), true, "write-protects private memory", "needs Linux 5.7",
     true},
    {"kernel.wp-shmem", ITEM(wp_shmem), true, "write-protects shared memory and huge pages",
     "needs Linux 5.19", true},
    {"kernel.minor-shmem", ITEM(minor_shmem), false, "restores shared memory by several threads",
     "one thread copies it (needs Linux 5.14)", true},
    {"kernel.event-remove", ITEM(event_remove), true, "sees memory that the VM gives back",
     "needs Linux 4.11", true},
    {"kernel.pagemap", ITEM(pagemap_entries), true, "tells absent memory from present memory",
     "needs CAP_SYS_ADMIN: run as root", false},
    {"kernel.pidfd-getfd", ITEM(pidfd_getfd), true, "fetches the userfaultfd of the VM's process",
     "needs Linux 5.6", false},
    {"kernel.poison", ITEM(poison), false, "poisoned pages stay poisoned after a restore",
     "an image with poisoned pages can't be restored (needs Linux 6.6)", true},
    {"kernel.pagemap-scan", ITEM(pagemap_scan), false, "scans memory maps faster",
     "pagemap entries are read one by one (needs Linux 6.7)", false},
    {"kernel.collapse", ITEM(collapse), false, "gives huge pages back after a snapshot or restore",
     "memory stays in small pages until khugepaged merges it (needs Linux 6.1)", false},
};

size_t kernel_list(struct kernel_item *items, size_t max)
{
    const struct kernel_features *f = kernel_probe();
    size_t n = sizeof(item_texts) / sizeof(item_texts[0]);
    n = n < max ? n : max;
    for (size_t i = 0; i < n; i++) {
        const struct item_text *text = &item_texts[i];
        items[i].name = text->name;
        items[i].ok = *(const bool *)((const char *)f + text->offset);
        items[i].required = text->required;
        items[i].is_right = !items[i].ok && f->no_right && text->offset == ITEM(userfaultfd);
        const char *missing = text->of_userfaultfd && !f->userfaultfd
                                  ? "not known without kernel.userfaultfd"
                              : items[i].is_right ? no_right_text
                                                  : text->without;
        snprintf(items[i].reason, sizeof(items[i].reason), "%s%s%s", text->purpose,
                 items[i].ok         ? ""
                 : items[i].is_right ? "; not permitted: "
                                     : "; missing: ",
                 items[i].ok ? "" : missing);
    }
    return n;
}

int kernel_require(struct error *e)
{
    struct kernel_item items[sizeof(item_texts) / sizeof(item_texts[0])];
    size_t n = kernel_list(items, sizeof(items) / sizeof(items[0]));
    for (size_t i = 0; i < n; i++) {
        if (!items[i].required || items[i].ok)
            continue;
        error_set(e, VMSNAP_EXIT_KERNEL, 0, "can't use %s here: %s", items[i].name,
                  items[i].reason);
        if (items[i].is_right || strstr(items[i].reason, "CAP_"))
            error_hint(e, "run vmsnap as root, or with CAP_SYS_PTRACE and CAP_SYS_ADMIN; `vmsnap "
                          "check` lists every feature");
        else
            error_hint(e, "vmsnap needs Linux 6.1 or newer with userfaultfd, and root; "
                          "`vmsnap check` lists every feature");
        return -ENOTSUP;
    }
    return 0;
}
