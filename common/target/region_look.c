/*
 * Theory of operation
 *
 * Which place a page is read from is said in region.c. Here the look covers up to 2 MiB, and holes
 * that reach further are remembered, so that a huge one is passed without asking about each part.
 *
 * SEEK_DATA is asked only where the page table has nothing (what is mapped has data), once per
 * cluster or hole; never SEEK_HOLE, which in a file without holes walks all of it under the inode's
 * lock.
 *
 * Then one process_vm_readv() takes all runs that are in memory, and a preadv() each run of the
 * file. Where one comes back short, the piece that it stopped in is read by itself by
 * region_read(), which knows what to make of it.
 */
#include "common/target/region_look.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#define PAGE_BYTES 4096u
#define PROBE_PAGES 4u /* what has data in one of these is read as a whole */

void region_look_begin(struct region_look *k, const struct region *r, const struct target *t)
{
    k->region = r;
    k->target = t;
    k->n_pages = 0;
    k->file_hole_from = k->file_hole_to = 0;
    k->hole_from = k->hole_to = 0;
}

/* ---- looking ---- */

/* Where the data of the file goes on from `offset`, offsets in the region. */
static uint64_t next_data(struct region_look *k, uint64_t offset)
{
    const struct region *r = k->region;
    if (offset >= k->file_hole_from && offset < k->file_hole_to)
        return k->file_hole_to;
    off_t at = lseek(r->fd, (off_t)(r->fd_offset + offset), SEEK_DATA);
    uint64_t data = at < 0 ? r->bytes : (uint64_t)at - r->fd_offset;
    if (at < 0 && errno != ENXIO)
        return offset; /* can't tell: read it */
    if (data > offset) {
        k->file_hole_from = offset;
        k->file_hole_to = data;
    }
    return data;
}

/* Decides between file and zero for the pages that the page table knows nothing of. */
static void look_in_file(struct region_look *k)
{
    for (unsigned i = 0; i < k->n_pages;) {
        if (k->presence[i] != PAGE_ABSENT) {
            i++;
            continue;
        }
        uint64_t offset = k->offset + (uint64_t)i * PAGE_BYTES, data = next_data(k, offset);
        bool has_data = data < offset + PAGE_BYTES;
        uint64_t end =
            has_data ? i - i % PROBE_PAGES + PROBE_PAGES : i + (data - offset) / PAGE_BYTES;
        for (; i < k->n_pages && i < end; i++)
            if (k->presence[i] == PAGE_ABSENT)
                k->place[i] = has_data ? PAGE_IN_FILE : PAGE_ZERO;
    }
}

/* True if all of it lies in a hole that is known. */
static bool in_known_hole(const struct region_look *k, uint64_t hva)
{
    return hva >= k->hole_from && hva + (uint64_t)k->n_pages * PAGE_BYTES <= k->hole_to;
}

static bool nothing_present(const struct region_look *k)
{
    for (unsigned i = 0; i < k->n_pages; i++)
        if (k->presence[i] != PAGE_ABSENT)
            return false;
    return true;
}

static int look_in_page_table(struct region_look *k)
{
    const struct region *r = k->region;
    uint64_t hva = r->hva + k->offset;
    if (in_known_hole(k, hva)) {
        for (unsigned i = 0; i < k->n_pages; i++)
            k->presence[i] = PAGE_ABSENT;
        return 0;
    }
    int ret = target_presence_scan(k->target, hva, k->n_pages, k->presence);
    if (ret || !nothing_present(k))
        return ret;
    k->hole_from = hva;
    return target_hole_end(k->target, hva, r->hva + r->bytes, &k->hole_to);
}

int region_look_at(struct region_look *k, uint64_t offset, unsigned n_pages)
{
    assert(n_pages > 0 && n_pages <= REGION_LOOK_PAGES);
    k->offset = offset;
    k->n_pages = n_pages;
    int ret = look_in_page_table(k);
    if (ret)
        return ret;
    const uint8_t present = k->region->kind == REGION_SHARED ? PAGE_IN_FILE : PAGE_IN_MEMORY;
    for (unsigned i = 0; i < n_pages; i++)
        k->place[i] = k->presence[i] == PAGE_POISONED  ? PAGE_IS_POISON
                      : k->presence[i] == PAGE_PRESENT ? present
                                                       : PAGE_ZERO;
    if (k->region->kind != REGION_ANON)
        look_in_file(k);
    return 0;
}

/* ---- reading ---- */

/* Notes what a piece has at `place`, one run per stretch. */
static void add_runs(struct region_look *k, const struct region_piece *p, unsigned piece,
                     enum page_place place)
{
    for (unsigned i = 0; i < p->n_pages;) {
        unsigned n = 0;
        while (i + n < p->n_pages && k->place[p->first_page + i + n] == place)
            n++;
        uint64_t offset = k->offset + (uint64_t)(p->first_page + i) * PAGE_BYTES;
        if (n > 0)
            k->runs[k->n_runs++] = (struct region_run){
                .at = offset + (place == PAGE_IN_FILE ? k->region->fd_offset : k->region->hva),
                .to = (char *)p->to + (size_t)i * PAGE_BYTES,
                .bytes = n * PAGE_BYTES,
                .piece = piece};
        i += n > 0 ? n : 1;
    }
}

static void collect(struct region_look *k, const struct region_piece *pieces, unsigned n,
                    enum page_place place)
{
    k->n_runs = 0;
    for (unsigned i = 0; i < n; i++)
        add_runs(k, &pieces[i], i, place);
}

/* Zeros, and what is poisoned. */
static void fill_rest(const struct region_look *k, struct region_piece *p)
{
    p->poisoned = 0;
    p->err = 0;
    for (unsigned i = 0; i < p->n_pages; i++) {
        uint8_t place = k->place[p->first_page + i];
        if (place != PAGE_ZERO && place != PAGE_IS_POISON)
            continue;
        memset((char *)p->to + (size_t)i * PAGE_BYTES, 0, PAGE_BYTES);
        p->poisoned |= (uint64_t)(place == PAGE_IS_POISON) << i;
    }
}

/* Fills local[] and remote[] with runs [from, ...), of the file only as far as they adjoin. Returns
 * how many runs; *n_remote: how many stretches. */
static unsigned gather(struct region_look *k, unsigned from, bool file, unsigned *n_remote)
{
    unsigned i = from;
    *n_remote = 0;
    for (; i < k->n_runs; i++) {
        const struct region_run *run = &k->runs[i];
        bool adjoins = i > from && run->at == run[-1].at + run[-1].bytes;
        if (file && i > from && !adjoins)
            break;
        k->local[i - from] = (struct iovec){.iov_base = run->to, .iov_len = run->bytes};
        if (adjoins)
            k->remote[*n_remote - 1].iov_len += run->bytes;
        else
            k->remote[(*n_remote)++] =
                (struct iovec){.iov_base = (void *)(uintptr_t)run->at, .iov_len = run->bytes};
    }
    return i - from;
}

/* Runs of the list that `got` bytes have filled, from `from` on. */
static unsigned filled(const struct region_look *k, unsigned from, unsigned n, ssize_t got)
{
    unsigned i = 0;
    for (; i < n && got >= (ssize_t)k->runs[from + i].bytes; i++)
        got -= (ssize_t)k->runs[from + i].bytes;
    return i;
}

static void read_runs(struct region_look *k, struct region_piece *pieces, bool file)
{
    for (unsigned at = 0; at < k->n_runs;) {
        unsigned n_remote, n = gather(k, at, file, &n_remote);
        ssize_t got = file ? preadv(k->region->fd, k->local, (int)n, (off_t)k->runs[at].at)
                           : process_vm_readv(k->target->pid, k->local, n, k->remote, n_remote, 0);
        unsigned whole = filled(k, at, n, got);
        at += whole;
        if (whole == n)
            continue;
        unsigned piece = k->runs[at].piece;
        pieces[piece].err = -EAGAIN; /* read_alone() */
        while (at < k->n_runs && k->runs[at].piece == piece)
            at++;
    }
}

static void read_alone(const struct region_look *k, struct region_piece *p)
{
    p->err = region_read(k->region, k->target, k->offset + (uint64_t)p->first_page * PAGE_BYTES,
                         p->n_pages, p->to, NULL, &p->poisoned);
}

void region_look_read(struct region_look *k, struct region_piece *pieces, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        fill_rest(k, &pieces[i]);
    collect(k, pieces, n, PAGE_IN_MEMORY);
    read_runs(k, pieces, false);
    if (k->region->kind != REGION_ANON) {
        collect(k, pieces, n, PAGE_IN_FILE);
        read_runs(k, pieces, true);
    }
    for (unsigned i = 0; i < n; i++)
        if (pieces[i].err)
            read_alone(k, &pieces[i]);
}
