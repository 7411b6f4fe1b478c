/*
 * theirs.c - see theirs.h.
 *
 * A guest waits meanwhile, so smaps is not read (milliseconds, with many libraries): the kernel is
 * asked itself. UFFDIO_CONTINUE, which private memory does not have, is refused in different ways:
 * ENOENT where nothing is registered, else EINVAL or (huge pages) EFAULT; nothing is done, nothing
 * allocated (seen with 6.18; before Linux 5.13 there is no such call, which is EINVAL too).
 * Registering once more with the same mode changes nothing where this userfaultfd has the range
 * already, and is EBUSY where another one has it. The calls that a range takes then tell huge pages
 * from small ones: those have no UFFDIO_ZEROPAGE.
 *
 * A userfaultfd acts on the address space in which it was made. A process that shows its own
 * mappings but hands over somebody else's descriptor only harms whoever gave that away.
 */
#include "restore/memory/theirs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/uffd.h"
#include "restore/memory/handoff.h"
#include "restore/memory/presence.h"

static bool is_userfaultfd(int fd)
{
    char name[32], link[64];
    snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(name, link, sizeof(link));
    return n == (ssize_t)strlen(HANDOFF_UFFD) && memcmp(link, HANDOFF_UFFD, (size_t)n) == 0;
}

/* What fdinfo says: "API: VERSION:FEATURES:IOCTLS". */
static uint64_t features_of(int fd)
{
    char name[48], line[128];
    snprintf(name, sizeof(name), "/proc/self/fdinfo/%d", fd);
    CLEANUP_STREAM FILE *f = fopen(name, "re");
    uint64_t api, features = 0;
    while (f && fgets(line, sizeof(line), f))
        if (sscanf(line, "API: %" SCNx64 ":%" SCNx64, &api, &features) == 2)
            break;
    return features;
}

bool theirs_tells_discards(int fd)
{
    return features_of(fd) & UFFD_FEATURE_EVENT_REMOVE;
}

static int refuse_block(const struct block *b, struct error *e, const char *why)
{
    return error_set(e, VMSNAP_EXIT_TARGET, EINVAL, "the VMM's memory at 0x%" PRIx64 " %s",
                     b->region.hva, why);
}

/* Asked of a mapping's first page, for all of it: a registration that ends within a mapping divides
 * it. */
static bool is_registered(int fd, uint64_t hva, uint64_t page_bytes)
{
    return uffd_continue(fd, hva, page_bytes, false, NULL) != -ENOENT;
}

/* One mapping after the other until the block's end. What nobody has registered must not be asked
 * for more: that would register it. */
static int check_mappings(int fd, const struct block *b, const struct mapping_list *maps,
                          struct error *e)
{
    uint64_t at = b->region.hva, end = at + b->bytes;
    while (at < end) {
        const struct mapping *m = mapping_find(maps, at);
        if (!m)
            return refuse_block(b, e, "is not mapped in the process that connected");
        if (m->shared || (m->inode && b->region.page_bytes == IMAGE_PAGE_BYTES))
            return refuse_block(b, e, "is no private anonymous memory");
        if (!is_registered(fd, at, b->region.page_bytes))
            return refuse_block(b, e, "is not registered with a userfaultfd for missing pages");
        at = m->end;
    }
    return 0;
}

static int explain_register(const struct block *b, int rc, struct error *e)
{
    switch (rc) {
    case -EBUSY:
        return refuse_block(b, e,
                            "is registered with another userfaultfd than the one handed "
                            "over");
    case -ESRCH:
        return error_set(e, VMSNAP_EXIT_TARGET, ESRCH, "the process of this userfaultfd has ended");
    default:
        error_set(e, VMSNAP_EXIT_TARGET, -rc,
                  "the userfaultfd handed over is not that of the memory at 0x%" PRIx64,
                  b->region.hva);
        return rc;
    }
}

static int check_registered(int fd, const struct block *b, struct error *e)
{
    uint64_t calls = 0;
    int rc = uffd_register(fd, b->region.hva, b->bytes, UFFDIO_REGISTER_MODE_MISSING, &calls);
    if (rc)
        return explain_register(b, rc, e);
    bool small = calls & (1ull << _UFFDIO_ZEROPAGE);
    return small == (b->region.page_bytes == IMAGE_PAGE_BYTES)
               ? 0
               : refuse_block(b, e, "has pages of another size than the handoff says");
}

/*
 * What is there already no fault asks for, and nothing that is brought in replaces it: the guest
 * would find what the VMM had, or zeros, in the place of its own content. Who is registered stays
 * as empty as it is seen here: a touch waits. Where the kernel has PAGEMAP_SCAN (Linux 6.7) holes
 * cost nothing; before that some 2 ms per GiB.
 */
static int check_empty(const struct target *t, const struct block *b, struct error *e)
{
    uint64_t n_pages;
    int rc = presence_count(b, t, &n_pages);
    if (rc)
        return error_set(e, VMSNAP_EXIT_TARGET, -rc, "can't see what process %d has in its memory",
                         (int)t->pid);
    return n_pages == 0 ? 0
                        : refuse_block(b, e,
                                       "holds something already: it must be empty when it is "
                                       "handed over");
}

/* A read of it must not wait. */
static int make_nonblocking(int fd, struct error *e)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && (flags & O_NONBLOCK || fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0))
        return 0;
    return error_set(e, VMSNAP_EXIT_TARGET, errno, "the userfaultfd handed over is of no use");
}

int theirs_check(int fd, const struct target *t, const struct blocks *blocks, struct error *e)
{
    struct mapping_list maps = {0};
    if (!is_userfaultfd(fd))
        return error_set(e, VMSNAP_EXIT_TARGET, EINVAL,
                         "the descriptor handed over is no userfaultfd");
    if (features_of(fd) & UFFD_FEATURE_EVENT_FORK) /* each would put a descriptor into ours */
        return error_set(e, VMSNAP_EXIT_TARGET, EINVAL,
                         "the userfaultfd handed over tells of forks (EVENT_FORK), and of the "
                         "memory of the VMM's children with them");
    int rc = target_mappings_brief(t, &maps, e);
    for (uint32_t i = 0; i < blocks->count && rc == 0; i++) {
        rc = check_mappings(fd, &blocks->items[i], &maps, e);
        if (rc == 0)
            rc = check_registered(fd, &blocks->items[i], e);
        if (rc == 0)
            rc = check_empty(t, &blocks->items[i], e);
    }
    mapping_list_free(&maps);
    return rc ? rc : make_nonblocking(fd, e);
}

/*
 * Asked of a block's last page, and for that alone: the VMM may have unregistered the rest, or
 * mapped something else there, which a registration of it all would take. A server that is killed
 * while it lets go of the memory (handoff.c: upwards) leaves the end registered.
 */
static bool has_end(int fd, const struct block *b)
{
    uint64_t page = b->region.page_bytes, last = b->region.hva + b->bytes - page;
    return is_registered(fd, last, page) &&
           uffd_register(fd, last, page, UFFDIO_REGISTER_MODE_MISSING, NULL) == 0;
}

static bool has_any(int fd, const struct blocks *blocks)
{
    if (!is_userfaultfd(fd))
        return false;
    for (uint32_t i = blocks->count; i > 0; i--)
        if (has_end(fd, &blocks->items[i - 1]))
            return true;
    return false;
}

/* The next descriptor of the directory that could be it, as a copy of ours; -ENOENT: no more. */
static int next_candidate(DIR *d, const struct target *t)
{
    struct dirent *entry;
    while ((entry = readdir(d))) {
        bool same = false;
        int number = atoi(entry->d_name);
        if (target_fd_is(t, number, HANDOFF_UFFD, &same) || !same)
            continue;
        int fd = target_get_fd(t, number);
        if (fd >= 0)
            return fd;
    }
    return -ENOENT;
}

int theirs_find(const struct target *t, const struct blocks *blocks)
{
    int dir = openat(t->proc_fd, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = dir < 0 ? NULL : fdopendir(dir);
    if (!d)
        return -ENOENT;
    int fd;
    while ((fd = next_candidate(d, t)) >= 0 && !has_any(fd, blocks))
        close(fd);
    closedir(d);
    return fd;
}
