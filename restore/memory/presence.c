#include "restore/memory/presence.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool has_holes(const struct block *b)
{
    return b->region.kind != REGION_ANON && b->region.page_bytes == IMAGE_PAGE_BYTES;
}

/* Marks what the file holds of [offset, offset + n_pages pages). */
static int look_at_file(const struct block *b, uint64_t offset, size_t n_pages, bool *present)
{
    off_t base = (off_t)(b->region.fd_offset + offset);
    off_t end = base + (off_t)(n_pages * IMAGE_PAGE_BYTES);
    for (off_t at = base; at < end;) {
        off_t data = lseek(b->region.fd, at, SEEK_DATA);
        if (data < 0)
            return errno == ENXIO ? 0 : -errno; /* ENXIO: no data from here on */
        if (data >= end)
            return 0;
        off_t hole = lseek(b->region.fd, data, SEEK_HOLE);
        if (hole < 0)
            return -errno;
        at = hole < end ? hole : end;
        for (off_t page = data; page < at; page += IMAGE_PAGE_BYTES)
            present[(size_t)(page - base) / IMAGE_PAGE_BYTES] = true;
    }
    return 0;
}

static int look_at_page_table(const struct block *b, const struct target *t, uint64_t offset,
                              size_t n_pages, bool *present)
{
    enum page_presence there[PRESENCE_CHUNK_PAGES];
    int rc = target_presence(t, b->region.hva + offset, n_pages, there);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < n_pages; i++)
        present[i] |= there[i] != PAGE_ABSENT;
    return 0;
}

int presence_look(const struct block *b, const struct target *t, uint64_t offset, size_t n_pages,
                  bool *present)
{
    assert(n_pages <= PRESENCE_CHUNK_PAGES);
    memset(present, 0, n_pages * sizeof(*present));
    int rc = look_at_page_table(b, t, offset, n_pages, present);
    if (rc == 0 && has_holes(b))
        rc = look_at_file(b, offset, n_pages, present);
    return rc;
}

/* The first page of [at, end) that is not surely absent by the page table. */
static int skip_unmapped(const struct block *b, const struct target *t, uint64_t at, uint64_t end,
                         uint64_t *next)
{
    uint64_t low = b->region.hva + at, high = b->region.hva + end, hole_end;
    int rc = target_hole_end(t, low, high, &hole_end);
    while (rc == 0 && hole_end > low && hole_end < high) {
        low = hole_end; /* a piece was looked at: the hole may go on */
        rc = target_hole_end(t, low, high, &hole_end);
    }
    *next = hole_end - b->region.hva;
    return rc;
}

static int skip_file_hole(const struct block *b, uint64_t at, uint64_t end, uint64_t *next)
{
    off_t base = (off_t)b->region.fd_offset;
    off_t data = lseek(b->region.fd, base + (off_t)at, SEEK_DATA);
    if (data < 0 && errno != ENXIO)
        return -errno;
    *next = data < 0 || data - base > (off_t)end ? end : (uint64_t)(data - base);
    return 0;
}

int presence_skip(const struct block *b, const struct target *t, uint64_t offset, uint64_t *next)
{
    uint64_t mapped = b->bytes, in_file = b->bytes;
    *next = b->bytes;
    if (offset + IMAGE_PAGE_BYTES > b->bytes)
        return 0;
    int rc = skip_unmapped(b, t, offset, b->bytes, &mapped);
    if (rc == 0 && has_holes(b))
        rc = skip_file_hole(b, offset, b->bytes, &in_file);
    if (rc)
        return rc;
    uint64_t first = mapped < in_file ? mapped : in_file;
    *next = first < b->bytes ? first - first % IMAGE_CLUSTER_BYTES : b->bytes;
    if (*next < offset)
        *next = offset;
    return 0;
}

int presence_count(const struct block *b, const struct target *t, uint64_t *n_pages)
{
    *n_pages = 0;
    uint64_t at = 0;
    int rc = presence_skip(b, t, 0, &at);
    while (rc == 0 && at < b->bytes) {
        bool present[PRESENCE_CHUNK_PAGES];
        size_t n = presence_chunk(b, at);
        rc = presence_look(b, t, at, n, present);
        for (size_t i = 0; i < n && rc == 0; i++)
            *n_pages += present[i];
        if (rc == 0)
            rc = presence_skip(b, t, at + n * IMAGE_PAGE_BYTES, &at);
    }
    return rc;
}

bool presence_is_hidden(const struct block *b, uint64_t n_pages)
{
    struct stat st;
    if (b->region.kind == REGION_ANON || b->region.page_bytes == IMAGE_PAGE_BYTES)
        return false;
    return fstat(b->region.fd, &st) || (uint64_t)st.st_blocks * 512 / IMAGE_PAGE_BYTES > n_pages;
}
