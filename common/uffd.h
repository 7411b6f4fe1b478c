/*
 * uffd.h - thin, typed wrappers of userfaultfd(2) and ioctl_userfaultfd(2), and the constants that
 * Debian 12's headers lack. `fd` may stand for memory of another process (made there by an injected
 * syscall, fetched with pidfd_getfd): addresses are then that process's.
 *
 * Range calls hold the target's mmap_lock. Outside the pause they go in pieces of at most
 * UFFD_PIECE_BYTES; the *_pieces calls do that.
 */
#ifndef VMSNAP_COMMON_UFFD_H
#define VMSNAP_COMMON_UFFD_H

#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14)
#define _UFFDIO_POISON (0x08)
struct uffdio_poison {
    struct uffdio_range range;
    __u64 mode;
    __s64 updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, _UFFDIO_POISON, struct uffdio_poison)
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

/* PAGEMAP_SCAN (6.7+), from <linux/fs.h>. */
#ifndef PAGEMAP_SCAN
#include <linux/ioctl.h>
struct pm_scan_arg {
    __u64 size;
    __u64 flags;
    __u64 start;
    __u64 end;
    __u64 walk_end;
    __u64 vec;
    __u64 vec_len;
    __u64 max_pages;
    __u64 category_inverted;
    __u64 category_mask;
    __u64 category_anyof_mask;
    __u64 return_mask;
};
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#endif

#define UFFD_PIECE_BYTES (16ull << 20)

/* UFFDIO_API handshake. -EINVAL on an fd that has had it (a taken-over one): the
 * caller's to skip. */
int uffd_enable(int fd, uint64_t features);

/* Registers [start, start+len). `modes`: UFFDIO_REGISTER_MODE_*. *ioctls (may be NULL) gets the
 * mask of ioctls the range supports. -EBUSY: another userfaultfd has it. */
int uffd_register(int fd, uint64_t start, uint64_t len, uint64_t modes, uint64_t *ioctls);

/* Drops the registration (and any protection) in pieces, waking all waiters, also those who begin
 * to wait meanwhile. Goes on after an error; returns the first one. -ESRCH: the process is gone,
 * which is success for a caller that tidies up. */
int uffd_unregister_pieces(int fd, uint64_t start, uint64_t len);

/* Write-protects the range in one call (in the pause, or a range <= UFFD_PIECE_BYTES).
 * -EAGAIN: an event (REMOVE, UNMAP...) waits to be read first. */
int uffd_protect(int fd, uint64_t start, uint64_t len);

/* Unprotects and wakes. Every page of the range must have been saved. -EAGAIN as above. */
int uffd_unprotect(int fd, uint64_t start, uint64_t len);

int uffd_wake(int fd, uint64_t start, uint64_t len);

/* Installs pages where none is. Returns 0 or -errno; *done (bytes, may be NULL) says how far it
 * came: on -EEXIST the page at start + *done was present already, on -EAGAIN an event waits. */
int uffd_copy(int fd, uint64_t dst, const void *src, uint64_t len, bool wake, uint64_t *done);
int uffd_zeropage(int fd, uint64_t start, uint64_t len, bool wake, uint64_t *done);

/* Maps pages of shared memory that are in the file already (MINOR); *done and errors as above. */
int uffd_continue(int fd, uint64_t start, uint64_t len, bool wake, uint64_t *done);

/* Marks absent pages as poisoned: an access gets SIGBUS. Needs kernel_features.poison. */
int uffd_poison(int fd, uint64_t start, uint64_t len, uint64_t *done);

/* Reads up to `max` messages without blocking. Returns the number (0: none waits) or -errno. */
int uffd_read_messages(int fd, struct uffd_msg *messages, size_t max);

#endif
