/*
 * install.c - see install.h.
 *
 * Memory without a window (window.h) is installed by UFFDIO_COPY, which puts content and page table
 * entry there at once. Through a window it goes in three steps: the content is written into the
 * file, where no page is mapped; the clusters are marked as done; UFFDIO_CONTINUE maps them. Who
 * dies before the second has done nothing: the successor writes all of it again. After it nobody
 * writes any more: the page is the guest's, in the page table or not, and all that is ever done for
 * it is to map what the file holds. (A page that was filled, written by the guest and then unmapped
 * looks just like one that was only filled.)
 *
 * Fill workers do the first step themselves (in_place.h); a page's state says whose turn it is.
 *
 * What the file holds of a cluster that is not done is never believed: it may be half written, or
 * belong to a huge page that was allocated for a neighbour.
 */
#include "restore/memory/install.h"

#include <errno.h>
#include <sys/mman.h>

#include "common/testhook.h"
#include "common/uffd.h"
#include "restore/memory/in_place.h"
#include "restore/memory/window.h"

int installer_init(struct installer *ins, int uffd, const struct image *img,
                   struct page_state *state, uint64_t zeros_bytes)
{
    uint64_t n_poison;
    image_poison_list(img, &n_poison);
    void *zeros = mmap(NULL, zeros_bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (zeros == MAP_FAILED)
        return -ENOMEM;
    *ins = (struct installer){.uffd = uffd,
                              .img = img,
                              .state = state,
                              .zeros = zeros,
                              .zeros_bytes = zeros_bytes,
                              .has_poison = n_poison > 0};
    return 0;
}

void installer_free(struct installer *ins)
{
    if (ins->zeros)
        munmap(ins->zeros, ins->zeros_bytes);
    ins->zeros = NULL;
}

enum page_class {
    PAGE_GIVE,   /* install it */
    PAGE_SKIP,   /* discarded: leave it out */
    PAGE_POISON, /* poison it */
    PAGE_MAP,    /* shared memory whose content is in the file: map it */
};

/* A huge page is discarded or poisoned as a whole: its first cluster speaks for it. */
static enum page_class classify(const struct installer *ins, const struct block *b, uint64_t offset)
{
    uint64_t cluster = block_cluster_at(b, offset);
    unsigned bit = 1u << (offset / IMAGE_PAGE_BYTES % IMAGE_CLUSTER_PAGES);
    if (page_state_discarded(ins->state, cluster) & bit)
        return PAGE_SKIP;
    if (ins->has_poison && (image_cluster_poison(ins->img, cluster) & bit))
        return PAGE_POISON;
    return PAGE_GIVE;
}

/* One kind of ioctl over one run of pages; `data` NULL: zeros of the kernel's. */
static int put(const struct installer *ins, enum page_class class, uint64_t hva, const void *data,
               uint64_t len, uint64_t *done)
{
    if (class == PAGE_POISON)
        return uffd_poison(ins->uffd, hva, len, done);
    if (class == PAGE_MAP)
        return uffd_continue(ins->uffd, hva, len, true, done);
    if (data)
        return uffd_copy(ins->uffd, hva, data, len, true, done);
    return uffd_zeropage(ins->uffd, hva, len, true, done);
}

/*
 * Puts a run in; steps over pages that are present, which nobody may overwrite. The kernel refuses
 * a range (ENOENT) that is not within one mapping: it may have been split in between by an madvise
 * or mprotect of the process's. Then it goes page by page, and what is not there is left out.
 * EFAULT: what is to be mapped is a hole again, the guest's doing.
 * *settled: bytes that are in.
 */
static int put_run(const struct installer *ins, const struct block *b, enum page_class class,
                   uint64_t offset, const unsigned char *data, uint64_t len, uint64_t *present,
                   uint64_t *settled)
{
    uint64_t page = b->region.page_bytes, piece = len;
    while (len > 0) {
        uint64_t n = len < piece ? len : piece, done = 0;
        int rc = put(ins, class, b->region.hva + offset, data, n, &done);
        if (rc == 0)
            done = n;
        *settled += done;
        if (rc == -EEXIST) {
            done += page;
            *settled += page;
            if (present)
                *present += page;
        } else if (rc == -EFAULT && class == PAGE_MAP) {
            done += page;
            *settled += page;
        } else if (rc == -ENOENT) {
            done += n == page ? page : 0;
            piece = page;
        } else if (rc && (rc != -EAGAIN || done == 0)) {
            return rc;
        }
        offset += done;
        data = data ? data + done : NULL;
        len -= done;
    }
    return 0;
}

static int install(const struct installer *ins, const struct block *b, uint64_t offset,
                   const unsigned char *data, uint64_t len, uint64_t *present)
{
    uint64_t page = b->region.page_bytes, tried = 0, settled = 0;
    for (uint64_t at = 0; at < len;) {
        enum page_class class = classify(ins, b, offset + at);
        uint64_t end = at + page;
        while (end < len && classify(ins, b, offset + end) == class)
            end += page;
        if (class != PAGE_SKIP) {
            const unsigned char *from = data && class == PAGE_GIVE ? data + at : NULL;
            int rc = put_run(ins, b, class, offset + at, from, end - at, present, &settled);
            if (rc)
                return rc;
            tried += end - at;
        }
        at = end;
    }
    return tried > 0 && settled == 0 ? -ENOENT : 0;
}

/* hugetlbfs has no zero page (UFFDIO_ZEROPAGE is EINVAL there). */
static bool has_zero_page(const struct block *b)
{
    return b->region.page_bytes == IMAGE_PAGE_BYTES;
}

/* ---- shared memory with a window ---- */

/* What is done to the runs of one class: one of these. */
enum step { STEP_POISON, STEP_WRITE, STEP_ZERO, STEP_MAP };

static int do_step(const struct installer *ins, const struct block *b, enum step step,
                   uint64_t offset, const unsigned char *data, uint64_t len, uint64_t *present,
                   uint64_t *settled)
{
    switch (step) {
    case STEP_POISON:
        return put_run(ins, b, PAGE_POISON, offset, NULL, len, present, settled);
    case STEP_WRITE:
        return window_write(b, offset, data, len);
    case STEP_ZERO:
        return put_run(ins, b, PAGE_GIVE, offset, has_zero_page(b) ? NULL : ins->zeros, len,
                       present, settled);
    case STEP_MAP:
        return put_run(ins, b, PAGE_MAP, offset, NULL, len, present, settled);
    }
    return -EINVAL;
}

/* Does it to all runs of [offset, offset + len) that it is meant for. */
static int do_all(const struct installer *ins, const struct block *b, enum step step,
                  uint64_t offset, const unsigned char *data, uint64_t len, uint64_t *present,
                  uint64_t *settled)
{
    enum page_class wanted = step == STEP_POISON ? PAGE_POISON : PAGE_GIVE;
    uint64_t page = b->region.page_bytes;
    for (uint64_t at = 0, end; at < len; at = end) {
        enum page_class class = classify(ins, b, offset + at);
        end = at + page;
        while (end < len && classify(ins, b, offset + end) == class)
            end += page;
        if (class != wanted)
            continue;
        int rc =
            do_step(ins, b, step, offset + at, data ? data + at : NULL, end - at, present, settled);
        if (rc)
            return rc;
    }
    return 0;
}

static void mark_done(const struct installer *ins, const struct block *b, uint64_t offset,
                      uint64_t len)
{
    for (uint64_t at = 0; at < len; at += IMAGE_CLUSTER_BYTES)
        page_state_set(ins->state, block_cluster_at(b, offset + at), CLUSTER_DONE);
}

/* Gives up the claims of [offset, offset + len). */
static void disclaim(const struct installer *ins, const struct block *b, uint64_t offset,
                     uint64_t len)
{
    for (uint64_t at = 0; at < len; at += b->unit_bytes) {
        uint64_t first = block_cluster_at(b, offset + at);
        if (page_state_get(ins->state, first) == CLUSTER_WRITING)
            page_state_set(ins->state, first, CLUSTER_PENDING);
    }
}

/* What is poisoned comes first: a cluster that is done has it. */
static int poison_all(const struct installer *ins, const struct block *b, uint64_t offset,
                      uint64_t len)
{
    uint64_t settled = 0;
    return ins->has_poison ? do_all(ins, b, STEP_POISON, offset, NULL, len, NULL, &settled) : 0;
}

/* Keeps workers from [offset, offset + len): false when one has a unit of it. */
static bool claim(const struct installer *ins, const struct block *b, uint64_t offset, uint64_t len)
{
    for (uint64_t at = 0; at < len; at += b->unit_bytes)
        if (!page_state_claim_for_server(ins->state, block_cluster_at(b, offset + at))) {
            disclaim(ins, b, offset, at);
            return false;
        }
    return true;
}

/* Between the claim and the mapping: what step `step` does to the pages that are to be given. */
static int write_claimed(const struct installer *ins, const struct block *b, enum step step,
                         uint64_t offset, const unsigned char *data, uint64_t len)
{
    int rc = poison_all(ins, b, offset, len);
    if (rc == 0 && step == STEP_WRITE)
        rc = do_all(ins, b, step, offset, data, len, NULL, NULL);
    if (rc == 0)
        mark_done(ins, b, offset, len);
    else
        disclaim(ins, b, offset, len);
    return rc;
}

static int install_shared(const struct installer *ins, const struct block *b, uint64_t offset,
                          const unsigned char *data, uint64_t len, uint64_t *present)
{
    uint64_t settled = 0;
    if (!claim(ins, b, offset, len))
        return -EBUSY;
    int rc = write_claimed(ins, b, STEP_WRITE, offset, data, len);
    return rc ? rc : do_all(ins, b, STEP_MAP, offset, NULL, len, present, &settled);
}

/* Zeros are in the file from the start: nothing but the guest ever writes there. */
static int install_shared_zeros(const struct installer *ins, const struct block *b, uint64_t offset,
                                uint64_t len, uint64_t *present)
{
    uint64_t settled = 0, there = 0;
    if (!claim(ins, b, offset, len))
        return -EBUSY;
    int rc = write_claimed(ins, b, STEP_ZERO, offset, NULL, len);
    if (rc == 0)
        rc = do_all(ins, b, STEP_ZERO, offset, NULL, len, &there, &settled);
    if (rc == 0 && there > 0)
        rc = do_all(ins, b, STEP_MAP, offset, NULL, len, present, &settled);
    return rc;
}

/* What was discarded while a worker wrote it must not be there when it is done. */
static int empty_discarded(const struct installer *ins, const struct block *b, uint64_t offset,
                           uint64_t len)
{
    int rc = 0;
    for (uint64_t at = 0; at < len && rc == 0; at += b->unit_bytes)
        rc = in_place_empty_discarded(ins->state, b, block_cluster_at(b, offset + at));
    return rc;
}

int install_filled(const struct installer *ins, const struct block *b, uint64_t offset,
                   uint64_t len, uint64_t *present)
{
    uint64_t settled = 0;
    if (page_state_get(ins->state, block_cluster_at(b, offset)) == CLUSTER_FILLING) {
        int rc = poison_all(ins, b, offset, len);
        if (rc == 0)
            rc = empty_discarded(ins, b, offset, len);
        if (rc)
            return rc;
        mark_done(ins, b, offset, len);
        TESTHOOK_POINT("fill-done");
    }
    return do_all(ins, b, STEP_MAP, offset, NULL, len, present, &settled);
}

/* A page that the guest owns: what the file holds of it, and if that is nothing, zeros. */
static int install_owned(const struct installer *ins, const struct block *b, uint64_t offset,
                         uint64_t *present)
{
    uint64_t page = b->region.page_bytes, settled = 0;
    int rc = uffd_continue(ins->uffd, b->region.hva + offset, page, true, NULL);
    if (rc == -EFAULT)
        return do_step(ins, b, STEP_ZERO, offset, NULL, page, present, &settled);
    if (rc == -EEXIST)
        *present += page;
    return rc == -EEXIST ? 0 : rc;
}

int install_data(const struct installer *ins, const struct block *b, uint64_t offset,
                 const void *data, uint64_t len, uint64_t *present)
{
    if (TESTHOOK_BROKEN("done-before-install"))
        mark_done(ins, b, offset, len);
    TESTHOOK_POINT("serve-installing");
    int rc = b->window ? install_shared(ins, b, offset, data, len, present)
                       : install(ins, b, offset, data, len, present);
    TESTHOOK_POINT("serve-installed");
    return rc;
}

int install_around(const struct installer *ins, const struct block *b, uint64_t offset,
                   const void *data, uint64_t len, uint64_t wanted, uint64_t *present)
{
    uint64_t page = b->region.page_bytes, end = offset + len;
    const struct {
        uint64_t from, to;
    } pieces[] = {{wanted, wanted + page}, {offset, wanted}, {wanted + page, end}};
    int wanted_rc = 0;
    if (b->window || len <= page || ins->whole_units)
        return install_data(ins, b, offset, data, len, present);
    for (int i = 0; i < 3; i++) {
        if (pieces[i].from >= pieces[i].to)
            continue;
        int rc = install_data(ins, b, pieces[i].from,
                              (const unsigned char *)data + (pieces[i].from - offset),
                              pieces[i].to - pieces[i].from, present);
        if (rc && rc != -ENOENT)
            return rc;
        if (i == 0)
            wanted_rc = rc;
    }
    return wanted_rc;
}

int install_zeros(const struct installer *ins, const struct block *b, uint64_t offset, uint64_t len,
                  enum install_zero how, uint64_t *present)
{
    if (b->window)
        return install_shared_zeros(ins, b, offset, len, present);
    if (how == INSTALL_ZERO_SHARED && has_zero_page(b))
        return install(ins, b, offset, NULL, len, present);
    while (len > 0) {
        uint64_t n = len < ins->zeros_bytes ? len : ins->zeros_bytes;
        int rc = install(ins, b, offset, ins->zeros, n, present);
        if (rc)
            return rc;
        offset += n;
        len -= n;
    }
    return 0;
}

int install_discarded(const struct installer *ins, const struct block *b, uint64_t offset,
                      uint64_t *present)
{
    uint64_t settled = 0;
    if (b->window)
        return install_owned(ins, b, offset, present);
    int rc = put_run(ins, b, PAGE_GIVE, offset, has_zero_page(b) ? NULL : ins->zeros,
                     b->region.page_bytes, present, &settled);
    return rc == 0 && settled == 0 ? -ENOENT : rc;
}

int install_poison(const struct installer *ins, const struct block *b, uint64_t offset,
                   uint64_t len, uint64_t *poisoned)
{
    uint64_t page = b->region.page_bytes, tried = 0, settled = 0, present = 0;
    if (b->window && !claim(ins, b, offset, len))
        return -EBUSY;
    int rc = 0;
    for (uint64_t at = 0; at < len && rc == 0; at += page) {
        if (classify(ins, b, offset + at) == PAGE_SKIP)
            continue;
        rc = put_run(ins, b, PAGE_POISON, offset + at, NULL, page, &present, &settled);
        tried += page;
    }
    *poisoned = settled - present;
    if (rc)
        disclaim(ins, b, offset, len);
    return rc == 0 && tried > 0 && settled == 0 ? -ENOENT : rc;
}

static int forget_begun(const struct block *b, struct page_state *state)
{
    for (uint64_t at = 0; at < b->bytes; at += b->unit_bytes) {
        uint64_t first = block_cluster_at(b, at);
        enum cluster_state found = page_state_get(state, first);
        bool refill = found == CLUSTER_DONE && TESTHOOK_BROKEN("minor-refilled");
        int rc =
            found == CLUSTER_FILLING ? window_empty(b, at, block_clip(b, at, b->unit_bytes)) : 0;
        if (rc)
            return rc;
        if (refill || found == CLUSTER_FILLING || found == CLUSTER_WRITING)
            page_state_set(state, first, CLUSTER_PENDING);
    }
    return 0;
}

int install_forget_begun(const struct blocks *blocks, struct page_state *state)
{
    int rc = 0;
    for (uint32_t i = 0; i < blocks->count && rc == 0; i++)
        if (blocks->items[i].window)
            rc = forget_begun(&blocks->items[i], state);
    return rc;
}
