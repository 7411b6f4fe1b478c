#include "restore/memory/in_place.h"

#include <errno.h>
#include <unistd.h>

#include "common/testhook.h"
#include "restore/memory/window.h"

#define RETRY_US 1000

/* The clusters whose states change as one: a cluster, or those of a huge page. */
static uint32_t step_of(const struct block *b)
{
    return (uint32_t)(b->unit_bytes / IMAGE_CLUSTER_BYTES);
}

bool in_place_claim(struct page_state *s, const struct block *b, uint64_t cluster, uint32_t n)
{
    if (!b->window)
        return false;
    for (uint32_t i = 0; i < n; i += step_of(b)) {
        if (page_state_claim(s, cluster + i))
            continue;
        in_place_give_back(s, b, cluster, i);
        return false;
    }
    if (TESTHOOK_BROKEN("done-before-content"))
        page_state_set(s, cluster, CLUSTER_DONE);
    TESTHOOK_POINT("fill-claimed");
    return true;
}

/* tmpfs takes its inode's lock for it: workers take turns, and nobody else waits for that. */
static bool write_whole(const struct block *b, uint64_t offset, const unsigned char *data,
                        uint64_t len)
{
    while (len > 0) {
        ssize_t n = pwrite(b->region.fd, data, len, (off_t)(b->region.fd_offset + offset));
        if (n <= 0)
            return false;
        offset += (uint64_t)n;
        data += n;
        len -= (uint64_t)n;
    }
    return true;
}

bool in_place_write(struct page_state *s, const struct block *b, uint64_t cluster, uint32_t n,
                    const void *data)
{
    uint64_t offset = block_cluster_offset(b, cluster);
    if (in_place_decodes(b) || !in_place_claim(s, b, cluster, n))
        return false;
    if (write_whole(b, offset, data, block_clip(b, offset, (uint64_t)n * IMAGE_CLUSTER_BYTES)))
        return true;
    in_place_give_back(s, b, cluster, n); /* no room: the server says so, and waits for it */
    return false;
}

/* A huge page is discarded as a whole. */
int in_place_empty_discarded(const struct page_state *s, const struct block *b, uint64_t cluster)
{
    unsigned discarded = page_state_discarded(s, cluster);
    uint64_t offset = block_cluster_offset(b, cluster), page = b->region.page_bytes;
    if (TESTHOOK_BROKEN("filled-over-discard"))
        return 0;
    for (unsigned i = 0; i < IMAGE_CLUSTER_PAGES && i * page < b->unit_bytes; i++) {
        int rc = discarded >> i & 1 ? window_empty(b, offset + i * page, page) : 0;
        if (rc)
            return rc;
    }
    return 0;
}

/* Pages may be discarded at any time, until the claim is given back. As long as it is claimed, no
 * wrong byte is seen. A VMM that means harm can seal the file, or write to the states (record.h),
 * so that it never succeeds: it must not keep us from ending. */
static void give_back(struct page_state *s, const struct block *b, uint64_t cluster)
{
    while (page_state_get(s, cluster) == CLUSTER_FILLING) {
        unsigned discarded = page_state_discarded(s, cluster);
        if (in_place_empty_discarded(s, b, cluster) == 0 &&
            page_state_unclaim(s, cluster, discarded))
            return;
        if (atomic_load(&s->ends))
            return;
        usleep(RETRY_US);
    }
}

void in_place_give_back(struct page_state *s, const struct block *b, uint64_t cluster, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += step_of(b))
        give_back(s, b, cluster + i);
}
