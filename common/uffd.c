/*
 * uffd.c - userfaultfd ioctls as functions that return -errno. See ioctl_userfaultfd(2).
 */
#include "common/uffd.h"

#include <assert.h>
#include <errno.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* The largest huge page of x86-64: what a piece falls back to where the range is hugetlbfs. */
#define UFFD_GIANT_BYTES (1ull << 30)

static int uffd_ioctl(int fd, unsigned long request, void *arg)
{
    return ioctl(fd, request, arg) == 0 ? 0 : -errno;
}

int uffd_enable(int fd, uint64_t features)
{
    struct uffdio_api api = {.api = UFFD_API, .features = features};
    return uffd_ioctl(fd, UFFDIO_API, &api);
}

int uffd_register(int fd, uint64_t start, uint64_t len, uint64_t modes, uint64_t *ioctls)
{
    struct uffdio_register reg = {.range = {.start = start, .len = len}, .mode = modes};
    int r = uffd_ioctl(fd, UFFDIO_REGISTER, &reg);
    if (r == 0 && ioctls)
        *ioctls = reg.ioctls;
    return r;
}

/*
 * The kernel wakes those who wait in the range before it takes the registration away. A fault that
 * holds only its mapping's own lock (newer kernels) may begin to wait in between, and nobody would
 * wake it any more while the userfaultfd stays open: measured on 6.18, one in some ten thousand
 * calls with two threads that touch pages, one in two on a busy machine. Once UNREGISTER has
 * returned no new one can come, so a WAKE after it (which needs no registration) finds them all.
 */
static int unregister_piece(int fd, uint64_t start, uint64_t len)
{
    struct uffdio_range range = {.start = start, .len = len};
    int r = uffd_ioctl(fd, UFFDIO_UNREGISTER, &range);
    int woken = uffd_wake(fd, start, len);
    return r ? r : woken;
}

int uffd_unregister_pieces(int fd, uint64_t start, uint64_t len)
{
    int first = 0;
    uint64_t piece = UFFD_PIECE_BYTES;
    for (uint64_t done = 0; done < len;) {
        uint64_t n = len - done < piece ? len - done : piece;
        int r = unregister_piece(fd, start + done, n);
        /* A piece may not cut a 1 GiB page: EINVAL. Try again with pieces of that size. */
        if (r == -EINVAL && piece == UFFD_PIECE_BYTES && len >= UFFD_GIANT_BYTES) {
            piece = UFFD_GIANT_BYTES;
            done = 0;
            continue;
        }
        if (r && !first)
            first = r;
        if (r == -ESRCH)
            break;
        done += n;
    }
    return first;
}

static int write_protect(int fd, uint64_t start, uint64_t len, uint64_t mode)
{
    struct uffdio_writeprotect wp = {.range = {.start = start, .len = len}, .mode = mode};
    return uffd_ioctl(fd, UFFDIO_WRITEPROTECT, &wp);
}

int uffd_protect(int fd, uint64_t start, uint64_t len)
{
    return write_protect(fd, start, len, UFFDIO_WRITEPROTECT_MODE_WP);
}

int uffd_unprotect(int fd, uint64_t start, uint64_t len)
{
    return write_protect(fd, start, len, 0);
}

int uffd_wake(int fd, uint64_t start, uint64_t len)
{
    struct uffdio_range range = {.start = start, .len = len};
    return uffd_ioctl(fd, UFFDIO_WAKE, &range);
}

/*
 * COPY, ZEROPAGE, CONTINUE and POISON answer alike: a call that stopped half-way fails with EAGAIN
 * and says in an output field how many bytes it came; one that did nothing says -errno there, or
 * leaves it alone (0, as we set it). The *_once functions turn that into *done and -errno.
 */
static int installed(int r, int64_t moved, uint64_t *done)
{
    *done = moved > 0 ? (uint64_t)moved : 0;
    return r;
}

typedef int install_fn(int fd, uint64_t start, const void *src, uint64_t len, bool wake,
                       uint64_t *done);

static int copy_once(int fd, uint64_t dst, const void *src, uint64_t len, bool wake, uint64_t *done)
{
    struct uffdio_copy copy = {.dst = dst,
                               .src = (uintptr_t)src,
                               .len = len,
                               .mode = wake ? 0 : UFFDIO_COPY_MODE_DONTWAKE};
    int r = uffd_ioctl(fd, UFFDIO_COPY, &copy);
    return installed(r, copy.copy, done);
}

static int zeropage_once(int fd, uint64_t start, const void *unused, uint64_t len, bool wake,
                         uint64_t *done)
{
    (void)unused;
    struct uffdio_zeropage zero = {.range = {.start = start, .len = len},
                                   .mode = wake ? 0 : UFFDIO_ZEROPAGE_MODE_DONTWAKE};
    int r = uffd_ioctl(fd, UFFDIO_ZEROPAGE, &zero);
    return installed(r, zero.zeropage, done);
}

static int continue_once(int fd, uint64_t start, const void *unused, uint64_t len, bool wake,
                         uint64_t *done)
{
    (void)unused;
    struct uffdio_continue cont = {.range = {.start = start, .len = len},
                                   .mode = wake ? 0 : UFFDIO_CONTINUE_MODE_DONTWAKE};
    int r = uffd_ioctl(fd, UFFDIO_CONTINUE, &cont);
    return installed(r, cont.mapped, done);
}

static int poison_once(int fd, uint64_t start, const void *unused, uint64_t len, bool wake,
                       uint64_t *done)
{
    (void)unused;
    (void)wake;
    struct uffdio_poison poison = {.range = {.start = start, .len = len}, .mode = 0};
    int r = uffd_ioctl(fd, UFFDIO_POISON, &poison);
    return installed(r, poison.updated, done);
}

/* Goes on after a part, so that the caller learns the true reason (EEXIST, EAGAIN...) of the first
 * page that could not be installed. Each round makes progress or ends. */
static int install(install_fn *once, int fd, uint64_t start, const void *src, uint64_t len,
                   bool wake, uint64_t *done)
{
    uint64_t total = 0;
    int r;
    do {
        uint64_t step = 0;
        r = once(fd, start + total, src ? (const char *)src + total : NULL, len - total, wake,
                 &step);
        total += r == 0 ? len - total : step;
        if (r != -EAGAIN || step == 0)
            break;
    } while (total < len);
    if (total == len)
        r = 0;
    if (done)
        *done = total;
    return r;
}

int uffd_copy(int fd, uint64_t dst, const void *src, uint64_t len, bool wake, uint64_t *done)
{
    return install(copy_once, fd, dst, src, len, wake, done);
}

int uffd_zeropage(int fd, uint64_t start, uint64_t len, bool wake, uint64_t *done)
{
    return install(zeropage_once, fd, start, NULL, len, wake, done);
}

int uffd_continue(int fd, uint64_t start, uint64_t len, bool wake, uint64_t *done)
{
    return install(continue_once, fd, start, NULL, len, wake, done);
}

int uffd_poison(int fd, uint64_t start, uint64_t len, uint64_t *done)
{
    return install(poison_once, fd, start, NULL, len, true, done);
}

int uffd_read_messages(int fd, struct uffd_msg *messages, size_t max)
{
    ssize_t n = read(fd, messages, max * sizeof(*messages));
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    assert((size_t)n % sizeof(*messages) == 0);
    return (int)((size_t)n / sizeof(*messages));
}
