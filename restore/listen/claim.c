/*
 * claim.c - see claim.h. Locks of ranges of an empty file, which stand for all memory of all
 * processes one after the other. They belong to an opening of the file, so that no process can die
 * and leave one behind, and a server keeps its VM's when the supervisor is killed.
 */
#include "restore/listen/claim.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"

#define CLAIM_WAIT_NS 1000000000ull
#define CLAIM_LOOK_US 5000u
#define PROCESS_SHIFT 40 /* bits of a page's number; the kernel's pids have 22 */

int claim_file(void)
{
    int fd = memfd_create("vmsnap-claims", MFD_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static int lock_block(int fd, pid_t pid, const struct block *b)
{
    uint64_t page = b->region.hva / IMAGE_PAGE_BYTES % (UINT64_C(1) << PROCESS_SHIFT);
    struct flock range = {
        .l_type = F_WRLCK,
        .l_whence = SEEK_SET,
        .l_start = (off_t)(((uint64_t)pid << PROCESS_SHIFT) + page),
        .l_len = (off_t)(b->bytes / IMAGE_PAGE_BYTES),
    };
    return fcntl(fd, F_OFD_SETLK, &range) ? -errno : 0;
}

static int lock_all(int fd, pid_t pid, const struct blocks *blocks)
{
    int rc = 0;
    for (uint32_t i = 0; i < blocks->count && rc == 0; i++)
        rc = lock_block(fd, pid, &blocks->items[i]);
    return rc == -EACCES ? -EAGAIN : rc;
}

static int refuse(struct error *e)
{
    error_set(e, VMSNAP_EXIT_BUSY, EALREADY, "the same memory was handed over before");
    error_hint(e, "it is served on as it was; a VMM hands its memory over once");
    return -EALREADY;
}

int claim_take(int file, pid_t pid, const struct blocks *blocks, int *fd, struct error *e)
{
    uint64_t until_ns = clock_monotonic_ns() + CLAIM_WAIT_NS;
    char name[32];
    snprintf(name, sizeof(name), "/proc/self/fd/%d", file);
    CLEANUP_FD int own = open(name, O_RDWR | O_CLOEXEC);
    if (own < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't note whose memory is served");
    int rc;
    while ((rc = lock_all(own, pid, blocks)) == -EAGAIN && clock_monotonic_ns() < until_ns)
        usleep(CLAIM_LOOK_US);
    if (rc == -EAGAIN)
        return refuse(e);
    if (rc)
        return error_set(e, VMSNAP_EXIT_FAILED, -rc, "can't note whose memory is served");
    *fd = take_fd(&own);
    return 0;
}
