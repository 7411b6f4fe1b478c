/*
 * attach.c - see attach.h.
 *
 * The order matters. What is present in large amounts (prealloc=on, mem-lock=on) is discarded
 * first, while no userfaultfd is there: afterwards an injected madvise would wait for us to read
 * its event. Then all blocks are registered, which freezes absence: an absent page stays absent
 * until we install it. Only then are the pages listed that are (still) present, and written from
 * the image; writing an absent page with process_vm_writev would wait for ourselves. Nothing is
 * ever assumed absent.
 */
#include "restore/memory/attach.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/codec.h"
#include "common/inject/inject.h"
#include "common/kernel.h"
#include "common/log.h"
#include "common/testhook.h"
#include "common/uffd.h"
#include "restore/memory/foreign.h"
#include "restore/memory/presence.h"
#include "restore/memory/window.h"

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24 /* Linux 5.18; Debian 12's headers lack it */
#endif

/* A block with more pages present than these is discarded; fewer are written from the image. */
#define WRITE_MAX_PAGES 512u

/* One injected madvise or one fallocate holds the process's locks this long at most. */
#define DISCARD_PIECE_BYTES (256ull << 20)

static bool has_poison(const struct image *img)
{
    uint64_t n;
    image_poison_list(img, &n);
    return n > 0;
}

int attach_check_kernel(const struct image *img, struct error *e)
{
    if (!has_poison(img) || kernel_probe()->poison)
        return 0;
    error_set(e, VMSNAP_EXIT_KERNEL, ENOTSUP,
              "the image holds poisoned pages, which this kernel can't bring back "
              "(UFFDIO_POISON, Linux 6.6)");
    error_hint(e, "restore it on a host with a newer kernel");
    return -ENOTSUP;
}

/* ---- discarding ---- */

static int discard_pages(const struct attach *a, const struct block *b, struct error *e)
{
    if (b->region.kind == REGION_SHARED)
        return 0;
    int advice = b->region.locked ? MADV_DONTNEED_LOCKED : MADV_DONTNEED;
    return inject_madvise(a->target, b->region.hva, b->bytes, advice, DISCARD_PIECE_BYTES,
                          a->timeout_ms, e);
}

static int punch_file(const struct block *b, struct error *e)
{
    if (b->region.kind == REGION_ANON)
        return 0;
    for (uint64_t at = 0; at < b->bytes; at += DISCARD_PIECE_BYTES) {
        uint64_t len = b->bytes - at < DISCARD_PIECE_BYTES ? b->bytes - at : DISCARD_PIECE_BYTES;
        if (fallocate(b->region.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      (off_t)(b->region.fd_offset + at), (off_t)len))
            return error_set(e, VMSNAP_EXIT_TARGET, errno,
                             "can't empty the file behind memory block '%s'", b->region.name);
    }
    return 0;
}

static int empty_block(const struct attach *a, const struct block *b, struct error *e)
{
    uint64_t n;
    int rc = presence_count(b, a->target, &n);
    if (rc)
        return error_set(e, VMSNAP_EXIT_TARGET, -rc, "can't see what memory block '%s' holds",
                         b->region.name);
    if (n <= WRITE_MAX_PAGES && !has_poison(a->img) && !presence_is_hidden(b, n))
        return 0;
    rc = foreign_check_data(b, e);
    if (rc)
        return rc;
    log_debug("memory block '%s': %" PRIu64 " pages are there already, discarding them",
              b->region.name, n);
    rc = discard_pages(a, b, e);
    return rc ? rc : punch_file(b, e);
}

/* ---- registering ---- */

static uint64_t wanted_features(const struct attach *a)
{
    uint64_t features = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP |
                        UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_MISSING_SHMEM |
                        UFFD_FEATURE_MISSING_HUGETLBFS;
    for (uint32_t i = 0; i < a->blocks->count; i++)
        if (a->blocks->items[i].window)
            features |= a->blocks->items[i].region.page_bytes == IMAGE_PAGE_BYTES
                            ? UFFD_FEATURE_MINOR_SHMEM
                            : UFFD_FEATURE_MINOR_HUGETLBFS;
    /* Also for --on-damage poison, and that of a later takeover. */
    return kernel_probe()->poison ? features | UFFD_FEATURE_POISON : features;
}

static int register_blocks(const struct attach *a, struct error *e)
{
    for (uint32_t i = 0; i < a->blocks->count; i++) {
        const struct block *b = &a->blocks->items[i];
        uint64_t modes = UFFDIO_REGISTER_MODE_MISSING;
        if (b->window) /* MINOR alone would read holes as zeros */
            modes |= UFFDIO_REGISTER_MODE_MINOR;
        int rc = uffd_register(a->uffd, b->region.hva, b->bytes, modes, NULL);
        if (rc == -EBUSY)
            return error_set(e, VMSNAP_EXIT_BUSY, EBUSY,
                             "memory block '%s' is under another userfaultfd already",
                             b->region.name);
        if (rc)
            return error_set(e, VMSNAP_EXIT_KERNEL, -rc, "can't register memory block '%s'",
                             b->region.name);
    }
    return 0;
}

/* ---- writing what is present ---- */

/* Writes the present ones of the cluster's `n` pages. With a window complete_cluster() does. */
static int write_pages(const struct attach *a, const struct block *b, uint64_t cluster,
                       const unsigned char *content, const bool *present, size_t n, struct error *e)
{
    uint64_t poison = image_cluster_poison(a->img, cluster);
    uint64_t hva = b->region.hva + block_cluster_offset(b, cluster);
    for (size_t i = 0; i < n; i++) {
        if (!present[i])
            continue;
        if (poison >> i & 1)
            return error_set(e, VMSNAP_EXIT_MISMATCH, 0,
                             "a page of memory block '%s' is poisoned in the image, but the VMM "
                             "that was started uses it already",
                             b->region.name);
        if (b->window)
            continue;
        size_t at = i * IMAGE_PAGE_BYTES;
        ssize_t done = target_write(a->target, hva + at, content + at, IMAGE_PAGE_BYTES);
        if (done != (ssize_t)IMAGE_PAGE_BYTES)
            return error_set(e, VMSNAP_EXIT_TARGET, done < 0 ? (int)-done : EFAULT,
                             "can't write memory block '%s' at offset 0x%" PRIx64, b->region.name,
                             block_cluster_offset(b, cluster) + at);
    }
    return 0;
}

/*
 * Of a block with a window all of the cluster is written, present or not, and is done with it: what
 * is present may change from now on without our knowing, so that nobody may write there later. A
 * poisoned page is among those that are absent (write_pages() has said so).
 */
static int complete_cluster(const struct attach *a, const struct block *b, uint64_t cluster,
                            const unsigned char *content, size_t n, struct error *e)
{
    uint64_t poison = image_cluster_poison(a->img, cluster);
    uint64_t offset = block_cluster_offset(b, cluster);
    int rc = window_write(b, offset, content, n * IMAGE_PAGE_BYTES);
    for (size_t i = 0; i < n && rc == 0; i++)
        if (poison >> i & 1)
            rc = uffd_poison(a->uffd, b->region.hva + offset + i * IMAGE_PAGE_BYTES,
                             IMAGE_PAGE_BYTES, NULL);
    if (rc)
        return error_set(e, VMSNAP_EXIT_TARGET, -rc,
                         "can't write memory block '%s' at offset 0x%" PRIx64, b->region.name,
                         offset);
    page_state_set(a->state, cluster, CLUSTER_DONE);
    return 0;
}

static int write_cluster(const struct attach *a, const struct block *b, uint64_t cluster,
                         struct codec *codec, const bool *present, size_t n, struct error *e)
{
    size_t n_present = 0;
    for (size_t i = 0; i < n; i++)
        n_present += present[i];
    if (n_present == 0)
        return 0;
    unsigned char content[IMAGE_CLUSTER_BYTES];
    int rc = image_read_cluster(a->img, cluster, codec, content, e);
    if (rc == 0)
        rc = write_pages(a, b, cluster, content, present, n, e);
    if (rc == 0 && b->window)
        rc = complete_cluster(a, b, cluster, content, n, e);
    else if (rc == 0 && n_present == n)
        page_state_set(a->state, cluster, CLUSTER_DONE);
    return rc;
}

static int write_block(const struct attach *a, const struct block *b, struct codec *codec,
                       struct error *e)
{
    uint64_t at = 0;
    int rc = presence_skip(b, a->target, 0, &at);
    while (rc == 0 && at < b->bytes) {
        bool present[PRESENCE_CHUNK_PAGES];
        size_t n = presence_chunk(b, at);
        rc = presence_look(b, a->target, at, n, present);
        if (rc)
            break;
        for (size_t i = 0; i < n; i += IMAGE_CLUSTER_PAGES) {
            size_t pages = n - i < IMAGE_CLUSTER_PAGES ? n - i : IMAGE_CLUSTER_PAGES;
            rc = write_cluster(a, b, block_cluster_at(b, at + i * IMAGE_PAGE_BYTES), codec,
                               present + i, pages, e);
            if (rc)
                return rc;
        }
        rc = presence_skip(b, a->target, at + n * IMAGE_PAGE_BYTES, &at);
    }
    if (rc)
        return error_set(e, VMSNAP_EXIT_TARGET, -rc, "can't see what memory block '%s' holds",
                         b->region.name);
    return 0;
}

static int write_present(const struct attach *a, struct error *e)
{
    struct codec *codec = codec_new(1);
    if (!codec)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "no memory for the decoder");
    int rc = 0;
    for (uint32_t i = 0; i < a->blocks->count && rc == 0; i++)
        rc = write_block(a, &a->blocks->items[i], codec, e);
    codec_free(codec);
    return rc;
}

int attach_memory(struct attach *a, struct error *e)
{
    bool trust_absence = TESTHOOK_BROKEN("present-taken-for-absent");
    a->uffd = a->target_fd = -1;
    int rc = foreign_check_fellows(a->blocks, a->target, e);
    if (rc)
        return rc;
    for (uint32_t i = 0; i < a->blocks->count && !trust_absence; i++) {
        rc = empty_block(a, &a->blocks->items[i], e);
        if (rc)
            return rc;
    }
    rc = inject_userfaultfd(a->target, &a->uffd, &a->target_fd, a->timeout_ms, e);
    if (rc)
        return rc;
    TESTHOOK_POINT("restore-attached");
    rc = uffd_enable(a->uffd, wanted_features(a));
    if (rc)
        rc = error_set(e, VMSNAP_EXIT_KERNEL, -rc,
                       "this kernel's userfaultfd lacks a feature that "
                       "restore needs (see 'vmsnap check')");
    if (rc == 0)
        rc = register_blocks(a, e);
    if (rc == 0) {
        TESTHOOK_POINT("restore-registered");
        rc = trust_absence ? 0 : write_present(a, e);
    }
    if (rc) {
        close(a->uffd);
        a->uffd = -1;
    }
    return rc;
}
