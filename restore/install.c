#include "restore/install.h"

#include <errno.h>
#include <sys/mman.h>

#include "common/uffd.h"

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
    if (data)
        return uffd_copy(ins->uffd, hva, data, len, true, done);
    return uffd_zeropage(ins->uffd, hva, len, true, done);
}

/*
 * Puts a run in; steps over pages that are present, which nobody may overwrite. The kernel refuses
 * a range (ENOENT) that is not within one mapping: it may have been split in between by an madvise
 * or mprotect of the process's. Then it goes page by page, and what is not there is left out.
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

int install_data(const struct installer *ins, const struct block *b, uint64_t offset,
                 const void *data, uint64_t len, uint64_t *present)
{
    return install(ins, b, offset, data, len, present);
}

/* hugetlbfs has no zero page (UFFDIO_ZEROPAGE is EINVAL there). */
static bool has_zero_page(const struct block *b)
{
    return b->region.page_bytes == IMAGE_PAGE_BYTES;
}

int install_zeros(const struct installer *ins, const struct block *b, uint64_t offset, uint64_t len,
                  enum install_zero how, uint64_t *present)
{
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
    int rc = put_run(ins, b, PAGE_GIVE, offset, has_zero_page(b) ? NULL : ins->zeros,
                     b->region.page_bytes, present, &settled);
    return rc == 0 && settled == 0 ? -ENOENT : rc;
}

int install_poison(const struct installer *ins, const struct block *b, uint64_t offset,
                   uint64_t len, uint64_t *poisoned)
{
    uint64_t page = b->region.page_bytes, tried = 0, settled = 0, present = 0;
    int rc = 0;
    for (uint64_t at = 0; at < len && rc == 0; at += page) {
        if (classify(ins, b, offset + at) == PAGE_SKIP)
            continue;
        rc = put_run(ins, b, PAGE_POISON, offset + at, NULL, page, &present, &settled);
        tried += page;
    }
    *poisoned = settled - present;
    return rc == 0 && tried > 0 && settled == 0 ? -ENOENT : rc;
}
