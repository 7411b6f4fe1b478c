/*
 * handoff.c - see handoff.h.
 *
 * A huge page is put together (MADV_COLLAPSE, Linux 6.1) where the process would have had one from
 * its first touch: the system gives them always, or on madvise and the memory asked; and only where
 * half of it is in use, so that collapsing does not make a guest's untouched memory real.
 */
#include "restore/memory/handoff.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/inject/inject.h"
#include "common/target/collapse.h"
#include "common/testhook.h"
#include "common/uffd.h"

#define HUGE_CLUSTERS (COLLAPSE_BYTES / IMAGE_CLUSTER_BYTES)

#define BUSY_MS 1000 /* another server of the same VMM is through in a few */
#define BUSY_PAUSE_NS 2000000

/* Only one can be at a process: where several memories of one VMM are complete at the same time,
 * their servers wait for each other. A debugger stays. */
static int close_in_turn(const struct target *t, int fd, int timeout_ms, struct error *e)
{
    uint64_t until_ns = clock_monotonic_ns() + BUSY_MS * 1000000ull;
    for (;;) {
        struct error why = *e;
        int rc = inject_close_fd(t, fd, timeout_ms, &why);
        if (rc != -EBUSY || clock_monotonic_ns() >= until_ns) {
            *e = why;
            return rc;
        }
        nanosleep(&(struct timespec){.tv_nsec = BUSY_PAUSE_NS}, NULL);
    }
}

int handoff_close_fd(const struct target *t, int fd, const char *link, int timeout_ms,
                     struct error *e)
{
    bool same;
    int rc = target_fd_is(t, fd, link, &same);
    if (rc == -ENOENT || rc == -ESRCH)
        return 0;
    if (rc)
        return error_set(e, VMSNAP_EXIT_FAILED, -rc, "can't look at its descriptors");
    return same ? close_in_turn(t, fd, timeout_ms, e) : 0; /* else it has closed it itself */
}

/* Reads a setting like "always [madvise] never". */
static bool setting_is(const char *path, const char *word)
{
    char text[128], wanted[32];
    CLEANUP_STREAM FILE *f = fopen(path, "re");
    size_t n = f ? fread(text, 1, sizeof(text) - 1, f) : 0;
    text[n] = '\0';
    snprintf(wanted, sizeof(wanted), "[%s]", word);
    return strstr(text, wanted) != NULL;
}

/* Whether a block's memory would have had huge pages without us. */
static bool wants_huge(const struct target *t, const struct block *b)
{
    if (b->region.page_bytes != IMAGE_PAGE_BYTES || b->bytes < COLLAPSE_BYTES)
        return false;
    const char *setting = b->region.kind == REGION_SHARED
                              ? "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
                              : "/sys/kernel/mm/transparent_hugepage/enabled";
    if (setting_is(setting, "always"))
        return true;
    if (!setting_is(setting, b->region.kind == REGION_SHARED ? "advise" : "madvise"))
        return false;
    struct mapping_list maps = {0};
    struct error ignored = {0};
    if (target_mappings(t, &maps, &ignored))
        return false;
    const struct mapping *m = mapping_find(&maps, b->region.hva);
    bool asked = m && m->hugepage;
    mapping_list_free(&maps);
    return asked;
}

static void next_block(struct handoff_collapse *c)
{
    if (c->block == c->blocks->count)
        return;
    const struct block *b = &c->blocks->items[c->block];
    c->block_wanted = wants_huge(c->target, b);
    c->offset = (COLLAPSE_BYTES - b->region.hva % COLLAPSE_BYTES) % COLLAPSE_BYTES;
}

void handoff_collapse_begin(struct handoff_collapse *c, const struct target *t,
                            const struct image *img, const struct blocks *blocks)
{
    *c = (struct handoff_collapse){.target = t, .img = img, .blocks = blocks};
    if (!collapse_is_possible())
        c->block = blocks->count;
    next_block(c);
}

/* Whether half of the huge page at `offset` holds something. */
static bool is_used(const struct handoff_collapse *c, const struct block *b, uint64_t offset)
{
    uint64_t first = block_cluster_at(b, offset);
    unsigned used = 0;
    for (unsigned i = 0; i < HUGE_CLUSTERS; i++)
        used += image_index_entry(c->img, first + i) != IMAGE_INDEX_ZERO;
    return used >= HUGE_CLUSTERS / 2;
}

/* How many from c->offset on are used, as many as a call takes. */
static unsigned count_used(const struct handoff_collapse *c, const struct block *b)
{
    unsigned n = 0;
    uint64_t offset = c->offset;
    while (n < collapse_batch(&c->run) && offset + COLLAPSE_BYTES <= b->bytes &&
           is_used(c, b, offset)) {
        n++;
        offset += COLLAPSE_BYTES;
    }
    return n;
}

bool handoff_collapse_step(struct handoff_collapse *c)
{
    while (c->block < c->blocks->count) {
        const struct block *b = &c->blocks->items[c->block];
        if (!c->block_wanted || c->offset + COLLAPSE_BYTES > b->bytes) {
            c->block++;
            next_block(c);
            continue;
        }
        unsigned n = count_used(c, b);
        if (n == 0) {
            c->offset += COLLAPSE_BYTES;
            continue;
        }
        enum collapse_result result;
        if (!collapse_next(&c->run, c->target, b->region.hva + c->offset, n, &result))
            c->block = c->blocks->count;
        c->offset += n * COLLAPSE_BYTES;
        break;
    }
    return c->block < c->blocks->count;
}

bool handoff_release_piece(struct handoff_release *r, int uffd, const struct blocks *blocks)
{
    if (r->block == blocks->count)
        return false;
    const struct block *b = &blocks->items[r->block];
    uint64_t len = b->bytes - r->offset;
    uint64_t piece =
        b->region.page_bytes > UFFD_PIECE_BYTES ? b->region.page_bytes : UFFD_PIECE_BYTES;
    if (len > piece)
        len = piece;
    TESTHOOK_POINT("serve-releasing");
    uffd_unregister_pieces(uffd, b->region.hva + r->offset, len);
    r->offset += len;
    if (r->offset == b->bytes) {
        r->block++;
        r->offset = 0;
    }
    return true;
}
