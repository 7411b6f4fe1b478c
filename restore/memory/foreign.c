#include "restore/memory/foreign.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/codec.h"
#include "common/fellow.h"

/* Option ROMs, ACPI tables. */
#define VMM_MAX_PAGES 512u
#define READ_BYTES (1u << 20)

int foreign_check_fellows(const struct blocks *blocks, const struct target *t, struct error *e)
{
    CLEANUP_FREE struct region *regions = calloc(blocks->count + 1, sizeof(*regions));
    if (!regions)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "no memory to look at the blocks");
    for (uint32_t i = 0; i < blocks->count; i++)
        regions[i] = blocks->items[i].region;
    struct fellow found;
    int rc = fellow_find(
        &found,
        &(struct fellow_search){.target = t->pid, .regions = regions, .n_regions = blocks->count});
    if (rc < 0)
        return error_set(e, VMSNAP_EXIT_TARGET, -rc, "can't look at the maps of other processes");
    if (rc == 0)
        return 0;
    error_set(e, VMSNAP_EXIT_HAZARD, 0, FOREIGN_HAZARD ": process %d (%s) maps memory block '%s'",
              (int)found.pid, found.name, found.region->name);
    error_hint(e, "guest memory must be the VMM's alone: end that process, or give a command line "
                  "with other memory after --");
    return -EPERM;
}

/* Counts the pages of [at, end) of the file that are not zero, up to `max`. */
static int count_data(int fd, off_t at, off_t end, unsigned char *buffer, uint64_t max, uint64_t *n)
{
    while (at < end && *n <= max) {
        size_t len = end - at < (off_t)READ_BYTES ? (size_t)(end - at) : READ_BYTES;
        ssize_t got = pread(fd, buffer, len, at);
        if (got <= 0)
            return got < 0 ? -errno : 0;
        for (ssize_t i = 0; i + (ssize_t)IMAGE_PAGE_BYTES <= got; i += IMAGE_PAGE_BYTES)
            *n += !codec_is_zero(buffer + i, IMAGE_PAGE_BYTES);
        at += got;
    }
    return 0;
}

/* The file's next extent from *at on; one that can't tell (hugetlbfs) is all data. */
static bool next_extent(int fd, off_t *at, off_t end, off_t *to)
{
    off_t data = lseek(fd, *at, SEEK_DATA), hole;
    *to = end;
    if (data < 0)
        return errno != ENXIO;
    if (data >= end)
        return false;
    *at = data;
    hole = lseek(fd, data, SEEK_HOLE);
    if (hole >= 0 && hole < end)
        *to = hole;
    return true;
}

int foreign_check_data(const struct block *b, struct error *e)
{
    struct stat st;
    int fd = b->region.fd;
    if (b->region.kind != REGION_SHARED || fstat(fd, &st) || st.st_nlink == 0)
        return 0;
    CLEANUP_FREE unsigned char *buffer = malloc(READ_BYTES);
    if (!buffer)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "no memory to look at the blocks");
    off_t at = (off_t)b->region.fd_offset, end = at + (off_t)b->bytes, to;
    uint64_t n = 0;
    int rc = 0;
    for (; rc == 0 && n <= VMM_MAX_PAGES && next_extent(fd, &at, end, &to); at = to)
        rc = count_data(fd, at, to, buffer, VMM_MAX_PAGES, &n);
    if (rc)
        return error_set(e, VMSNAP_EXIT_TARGET, -rc, "can't see what memory block '%s' holds",
                         b->region.name);
    if (n <= VMM_MAX_PAGES)
        return 0;
    error_set(e, VMSNAP_EXIT_HAZARD, 0,
              FOREIGN_HAZARD ": the file that memory block '%s' lies in holds data",
              b->region.name);
    error_hint(e, "remove the file if nothing needs it, or give a command line with another after "
                  "--");
    return -EPERM;
}
