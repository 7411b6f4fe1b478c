#include "restore/read/resident.h"

#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/uio.h>

#define MEMORY_PAGE 4096u
#define PAGES_AT_ONCE 64u

bool resident_has_nowait(int fd)
{
    char byte;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    return preadv2(fd, &iov, 1, 0, RWF_NOWAIT) >= 0 || errno == EAGAIN;
}

void resident_open(struct resident *r, int fd, uint64_t bytes)
{
    *r = (struct resident){0};
    if (bytes == 0 || !resident_has_nowait(fd))
        return;
    void *map = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    if (map == MAP_FAILED)
        return;
    madvise(map, bytes, MADV_DONTFORK);
    *r = (struct resident){.map = map, .map_bytes = bytes};
}

void resident_close(struct resident *r)
{
    if (r->map)
        munmap(r->map, r->map_bytes);
    *r = (struct resident){0};
}

bool resident_has(const struct resident *r, uint64_t offset, uint64_t bytes)
{
    unsigned char there[PAGES_AT_ONCE];
    if (!r->map || bytes > r->map_bytes || offset > r->map_bytes - bytes)
        return false;
    uint64_t page = offset / MEMORY_PAGE;
    uint64_t end = (offset + bytes + MEMORY_PAGE - 1) / MEMORY_PAGE;
    while (page < end) {
        uint64_t n = end - page < PAGES_AT_ONCE ? end - page : PAGES_AT_ONCE;
        if (mincore(r->map + page * MEMORY_PAGE, n * MEMORY_PAGE, there))
            return false;
        for (uint64_t i = 0; i < n; i++)
            if (!(there[i] & 1))
                return false;
        page += n;
    }
    return true;
}
