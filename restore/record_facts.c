/* record_facts.c - what a record says (record.h). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "restore/record_internal.h"

const char *record_image_path(const struct record *r)
{
    return r->facts.image_path;
}

const uint8_t *record_image_id(const struct record *r)
{
    return r->facts.image_id;
}

enum record_guest record_get_guest(const struct record *r)
{
    unsigned guest = atomic_load(&r->header->guest);
    return guest == RECORD_GUEST_LET_RUN || guest == RECORD_GUEST_LEFT_PAUSED
               ? (enum record_guest)guest
               : RECORD_GUEST_HELD;
}

int record_uffd(const struct record *r)
{
    return r->facts.uffd;
}

struct uffd_msg *record_messages(const struct record *r)
{
    return r->header->messages;
}

static bool is_page_size(uint64_t bytes)
{
    return bytes == IMAGE_PAGE_BYTES || bytes == 2ull << 20 || bytes == 1ull << 30;
}

static bool read_block(const struct record_block *from, struct region *to)
{
    struct record_block b = *from; /* once: the VMM may write to it */
    atomic_signal_fence(memory_order_seq_cst);
    *to = (struct region){.hva = b.hva,
                          .bytes = b.bytes,
                          .max_bytes = b.bytes,
                          .page_bytes = b.page_bytes,
                          .kind = (enum region_kind)b.kind,
                          .fd = -1};
    memcpy(to->name, b.name, sizeof(to->name));
    return memchr(b.name, '\0', sizeof(b.name)) && is_page_size(b.page_bytes) &&
           b.hva % b.page_bytes == 0 && b.hva + b.bytes >= b.hva && b.kind >= REGION_ANON &&
           b.kind <= REGION_PRIVATE_FILE;
}

int record_regions(const struct record *r, struct region **out, uint32_t *n)
{
    uint32_t count = r->facts.n_blocks;
    struct region *regions = calloc(count ? count : 1, sizeof(*regions));
    if (!regions)
        return -ENOMEM;
    for (uint32_t i = 0; i < count; i++)
        if (!read_block(&r->header->blocks[i], &regions[i])) {
            free(regions);
            return -EBADMSG;
        }
    *out = regions;
    *n = count;
    return 0;
}

bool record_is_theirs(const struct record *r)
{
    return r->facts.is_theirs;
}

int record_places(const struct record *r, struct block_place **out, uint32_t *n)
{
    uint32_t count = r->facts.n_blocks;
    struct block_place *places = calloc(count ? count : 1, sizeof(*places));
    if (!places)
        return -ENOMEM;
    for (uint32_t i = 0; i < count; i++) {
        struct region b;
        if (!read_block(&r->header->blocks[i], &b)) {
            free(places);
            return -EBADMSG;
        }
        places[i] = (struct block_place){.hva = b.hva,
                                         .bytes = b.bytes,
                                         .page_bytes = b.page_bytes,
                                         .offset = r->header->blocks[i].image_offset};
    }
    *out = places;
    *n = count;
    return 0;
}

bool record_has_window(const struct record *r, uint64_t hva)
{
    for (uint32_t i = 0; i < r->facts.n_blocks; i++)
        if (r->header->blocks[i].hva == hva)
            return r->header->blocks[i].has_window;
    return false;
}

bool record_states(const struct record *r, uint64_t n_clusters, struct page_state *out)
{
    if (r->facts.n_clusters != n_clusters)
        return false;
    page_state_map(out, (unsigned char *)r->header + r->facts.states_at, n_clusters);
    return true;
}
