/*
 * region.c - what kind of memory a block is, and reading it without changing it.
 *
 * Which pages may be read how:
 *   private anonymous   pagemap says present: process_vm_readv; absent: zeros, untouched (a read
 *                       would raise a MISSING event that the reader itself may have to answer)
 *   shared              pread() of our copy of the file: a hole comes out as zeros without being
 *                       allocated, and no fault of any kind is raised in the target
 *   private of a file   pagemap says present (a private copy, or the file's page):
 * process_vm_readv; else pread() of the file A page that is present in pagemap can go away between
 * the look and the read only if the target discards it. Where it can, the caller has EVENT_REMOVE
 * on and reads no event meanwhile, which holds the target.
 */
#include "common/target/region.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/cleanup.h"

#define PAGE_BYTES 4096u
#define READ_PAGES_MAX 64u

static int refuse(const struct region *r, struct error *e, const char *what)
{
    error_set(e, VMSNAP_EXIT_HAZARD, 0, "memory block %s at 0x%" PRIx64 " %s", r->name, r->hva,
              what);
    return -ENOTSUP;
}

/* True when `next` goes on where `m` ends: the same memory with other flags. */
static bool continues(const struct mapping *m, const struct mapping *next)
{
    return next->start == m->end && next->shared == m->shared && next->inode == m->inode &&
           next->dev_major == m->dev_major && next->dev_minor == m->dev_minor &&
           next->page_bytes == m->page_bytes &&
           (m->inode == 0 || next->offset == m->offset + (m->end - m->start));
}

/* Checks that one piece of memory covers the region, and collects its flags. */
static int check_cover(struct region *r, const struct mapping_list *maps,
                       const struct mapping **first, struct error *e)
{
    uint64_t end = r->hva + (r->max_bytes > r->bytes ? r->max_bytes : r->bytes);
    const struct mapping *m = mapping_find(maps, r->hva);
    if (!m)
        return error_set(e, VMSNAP_EXIT_TARGET, EFAULT, "memory block %s: nothing at 0x%" PRIx64,
                         r->name, r->hva);
    *first = m;
    r->mergeable = r->locked = false;
    for (;; m++) {
        if (m->io || m->pfnmap)
            return refuse(r, e, "is device memory, which can't be write-protected");
        r->mergeable |= m->mergeable;
        r->locked |= m->locked;
        if (m->end >= end)
            return 0;
        if (m + 1 == maps->items + maps->count || !continues(m, m + 1))
            return error_set(e, VMSNAP_EXIT_TARGET, EFAULT,
                             "memory block %s at 0x%" PRIx64 " ends at 0x%" PRIx64
                             ", should end at 0x%" PRIx64,
                             r->name, r->hva, m->end, end);
    }
}

/* Opens the file behind a mapping through /proc/PID/map_files, which also works for files that
 * have no name (memfd, shared anonymous memory). For writing too where that is allowed: a restore
 * fills shared memory through it. */
static int open_mapped_file(const struct target *t, const struct mapping *m)
{
    char name[64];
    snprintf(name, sizeof(name), "map_files/%" PRIx64 "-%" PRIx64, m->start, m->end);
    int fd = openat(t->proc_fd, name, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        fd = openat(t->proc_fd, name, O_RDONLY | O_CLOEXEC);
    return fd >= 0 ? fd : -errno;
}

static int classify_file(struct region *r, const struct target *t, const struct mapping *m,
                         struct error *e)
{
    struct statfs fs;
    int fd = open_mapped_file(t, m);
    if (fd < 0 || fstatfs(fd, &fs) != 0) {
        int err = fd < 0 ? -fd : errno;
        region_close(r);
        return error_set(e, VMSNAP_EXIT_TARGET, err, "memory block %s: can't open its file %s",
                         r->name, m->name);
    }
    r->fd = fd;
    r->fd_offset = m->offset + (r->hva - m->start);
    r->kind = m->shared ? REGION_SHARED : REGION_PRIVATE_FILE;
    if (fs.f_type == TMPFS_MAGIC || fs.f_type == HUGETLBFS_MAGIC)
        return 0;
    region_close(r);
    char what[sizeof(m->name) + 128];
    snprintf(what, sizeof(what),
             "is a mapping of %s, a file neither in shared memory nor on hugetlbfs, which can't be "
             "write-protected",
             m->name);
    return refuse(r, e, what);
}

int region_classify(struct region *r, const struct target *t, const struct mapping_list *maps,
                    struct error *e)
{
    const struct mapping *m = NULL;
    r->fd = -1;
    r->fd_offset = 0;
    int err = check_cover(r, maps, &m, e);
    if (err)
        return err;
    r->page_bytes = m->page_bytes;
    if (m->inode != 0)
        return classify_file(r, t, m, e);
    r->kind = REGION_ANON;
    return 0;
}

void region_close(struct region *r)
{
    if (r->fd >= 0)
        close(r->fd);
    r->fd = -1;
}

void region_set_free(struct region_set *set)
{
    for (uint32_t i = 0; i < set->count; i++)
        region_close(&set->items[i]);
    free(set->items);
    free(set->gpa);
    memset(set, 0, sizeof(*set));
}

/* One call of region_read(): where its pages are, what came of them. */
struct page_read {
    const struct region *r;
    const struct target *t;
    uint64_t hva, fd_offset;
    unsigned n_pages;
    char *buf;
    uint64_t zero, poisoned;
    enum page_presence presence[READ_PAGES_MAX];
};

static char *page_at(const struct page_read *p, unsigned i)
{
    return p->buf + (size_t)i * PAGE_BYTES;
}

static void set_page(struct page_read *p, unsigned i, uint64_t *mask)
{
    memset(page_at(p, i), 0, PAGE_BYTES);
    *mask |= 1ull << i;
}

/* How many pages from `i` on have the presence of page i. */
static unsigned run_length(const struct page_read *p, unsigned i)
{
    unsigned n = 1;
    while (i + n < p->n_pages && p->presence[i + n] == p->presence[i])
        n++;
    return n;
}

/*
 * A page that is present and that process_vm_readv could not read. /proc/PID/mem reads it when
 * only its protection is in the way (PROT_NONE). If that fails too and it is still present, it is
 * hardware poison; if it is not, the target has unmapped it under us.
 */
static int read_stubborn_page(struct page_read *p, unsigned i)
{
    uint64_t hva = p->hva + (uint64_t)i * PAGE_BYTES;
    if (pread(p->t->mem_fd, page_at(p, i), PAGE_BYTES, (off_t)hva) == PAGE_BYTES)
        return 0;
    enum page_presence now;
    int r = target_presence(p->t, hva, 1, &now);
    if (r)
        return r;
    if (now == PAGE_ABSENT)
        return -EFAULT;
    set_page(p, i, &p->poisoned);
    return 0;
}

static int read_present(struct page_read *p, unsigned i, unsigned n)
{
    while (n > 0) {
        uint64_t hva = p->hva + (uint64_t)i * PAGE_BYTES;
        ssize_t got = target_read(p->t, hva, page_at(p, i), (size_t)n * PAGE_BYTES);
        if (got < 0 && got != -EFAULT)
            return (int)got;
        unsigned whole = got > 0 ? (unsigned)((size_t)got / PAGE_BYTES) : 0;
        i += whole;
        n -= whole;
        if (n == 0)
            break;
        int r = read_stubborn_page(p, i);
        if (r)
            return r;
        i++;
        n--;
    }
    return 0;
}

/* One page of the file. Beyond its end are zeros; EIO is hardware poison in the page cache. */
static int read_file_page(struct page_read *p, unsigned i)
{
    off_t at = (off_t)(p->fd_offset + (uint64_t)i * PAGE_BYTES);
    ssize_t got = pread(p->r->fd, page_at(p, i), PAGE_BYTES, at);
    if (got < 0 && errno == EIO) {
        set_page(p, i, &p->poisoned);
        return 0;
    }
    if (got < 0)
        return -errno;
    memset(page_at(p, i) + got, 0, PAGE_BYTES - (size_t)got);
    return 0;
}

/* No look for holes first: SEEK_DATA takes the inode's lock, which a thread of lower priority may
 * hold. */
static int read_file(struct page_read *p, unsigned i, unsigned n)
{
    off_t at = (off_t)(p->fd_offset + (uint64_t)i * PAGE_BYTES);
    ssize_t bytes = (ssize_t)n * PAGE_BYTES;
    if (pread(p->r->fd, page_at(p, i), (size_t)bytes, at) == bytes)
        return 0;
    for (unsigned k = i; k < i + n; k++) {
        int r = read_file_page(p, k);
        if (r)
            return r;
    }
    return 0;
}

/* Fills presence[]. Of shared memory it only says what is poisoned: there is a marker in the
 * target's page table, and the file knows nothing of it. */
static int look_up(struct page_read *p)
{
    int r = target_presence(p->t, p->hva, p->n_pages, p->presence);
    for (unsigned i = 0; r == 0 && p->r->kind == REGION_SHARED && i < p->n_pages; i++) {
        if (p->presence[i] == PAGE_ABSENT)
            p->presence[i] = PAGE_PRESENT;
    }
    return r;
}

/* A run of equal presence. */
static int read_run(struct page_read *p, unsigned i, unsigned n)
{
    if (p->presence[i] == PAGE_POISONED) {
        for (unsigned k = i; k < i + n; k++)
            set_page(p, k, &p->poisoned);
        return 0;
    }
    if (p->r->kind == REGION_SHARED)
        return read_file(p, i, n);
    if (p->presence[i] == PAGE_PRESENT)
        return read_present(p, i, n);
    if (p->r->kind == REGION_PRIVATE_FILE)
        return read_file(p, i, n);
    for (unsigned k = i; k < i + n; k++)
        set_page(p, k, &p->zero);
    return 0;
}

int region_read(const struct region *r, const struct target *t, uint64_t offset, unsigned n_pages,
                void *buf, uint64_t *zero, uint64_t *poisoned)
{
    assert(n_pages > 0 && n_pages <= READ_PAGES_MAX);
    struct page_read p;
    p.r = r;
    p.t = t;
    p.hva = r->hva + offset;
    p.fd_offset = r->fd_offset + offset;
    p.n_pages = n_pages;
    p.buf = buf;
    p.zero = p.poisoned = 0;
    int err = look_up(&p);
    for (unsigned i = 0, n; err == 0 && i < n_pages; i += n) {
        n = run_length(&p, i);
        err = read_run(&p, i, n);
    }
    if (zero)
        *zero = p.zero;
    if (poisoned)
        *poisoned = p.poisoned;
    return err;
}
