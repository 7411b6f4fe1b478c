#include "restore/presence.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
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

int presence_count(const struct block *b, const struct target *t, uint64_t *n_pages)
{
    *n_pages = 0;
    uint64_t total = b->bytes / IMAGE_PAGE_BYTES;
    for (uint64_t at = 0; at < total;) {
        bool present[PRESENCE_CHUNK_PAGES];
        size_t n = total - at < PRESENCE_CHUNK_PAGES ? (size_t)(total - at) : PRESENCE_CHUNK_PAGES;
        int rc = presence_look(b, t, at * IMAGE_PAGE_BYTES, n, present);
        if (rc)
            return rc;
        for (size_t i = 0; i < n; i++)
            *n_pages += present[i];
        at += n;
    }
    return 0;
}
