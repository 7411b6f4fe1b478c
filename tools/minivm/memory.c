/* memory.c - see memory.h. */
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/mman.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define HUGE_BYTES (2ull << 20)
#define MAX_FILLERS 8u

/* The descriptor that backs it, or -1 for anonymous memory; -errno. It stays open: a snapshot reads
 * through a copy of it. */
static int open_backing(const struct options *o)
{
    unsigned flags = MFD_CLOEXEC | (o->kind == MEMORY_HUGETLBFS ? MFD_HUGETLB | MFD_HUGE_2MB : 0);
    int fd = o->memory_file ? open(o->memory_file, O_RDONLY | O_CLOEXEC)
                            : memfd_create("minivm-ram", flags);
    if (fd < 0)
        return -errno;
    struct stat s;
    int error = 0;
    if (!o->memory_file && ftruncate(fd, (off_t)o->memory_bytes) != 0)
        error = -errno;
    if (o->memory_file && (fstat(fd, &s) != 0 || s.st_size != (off_t)o->memory_bytes))
        error = -ENODATA; /* a mapping behind its end would be a SIGBUS */
    if (error)
        close(fd);
    return error ? error : fd;
}

/* A free place of that many bytes that starts at a multiple of 2 MiB, with address space around it
 * that is kept without access: so it merges with no other mapping. NULL: errno. */
static void *find_place(uint64_t bytes)
{
    uint8_t *around = mmap(NULL, bytes + 2 * HUGE_BYTES, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return around == MAP_FAILED ? NULL : around + HUGE_BYTES - (uintptr_t)around % HUGE_BYTES;
}

static int map_flags(enum memory_kind kind, bool file)
{
    if (kind == MEMORY_MEMFD || kind == MEMORY_HUGETLBFS)
        return MAP_SHARED;
    return MAP_PRIVATE | MAP_NORESERVE | (file ? 0 : MAP_ANONYMOUS) |
           (kind == MEMORY_HUGETLB ? MAP_HUGETLB | MAP_HUGE_2MB : 0);
}

static int map_region(const struct memory *m, struct memory_region *r, const struct options *o)
{
    int flags = map_flags(o->kind, o->memory_file != NULL), advice = -1;
    bool anywhere = o->plain_mappings && !o->skewed;
    uint8_t *at = anywhere ? NULL : find_place(r->bytes);
    if (!anywhere && !at)
        return -errno;
    at += o->skewed ? GUEST_PAGE_BYTES : 0;
    at = mmap(at, r->bytes, PROT_READ | PROT_WRITE, flags | (at ? MAP_FIXED : 0), m->fd,
              m->fd < 0 ? 0 : (off_t)r->offset);
    if (at == MAP_FAILED)
        return -errno;
    if (o->kind == MEMORY_THP)
        advice = MADV_HUGEPAGE;
    else if (o->kind == MEMORY_ANON && !o->plain_mappings)
        advice = MADV_NOHUGEPAGE;
    r->hva = at;
    return advice >= 0 && madvise(at, r->bytes, advice) != 0 ? -errno : 0;
}

/* Regions of one size, but for the last one, which takes what is left. */
static void cut_regions(struct memory *m, const struct options *o)
{
    uint64_t each = o->memory_bytes / o->regions, at = 0;
    each -= o->regions > 1 ? each % options_region_unit(o) : 0;
    for (unsigned i = 0; i < o->regions; i++, at += each)
        m->regions[i] = (struct memory_region){
            .bytes = i + 1 < o->regions ? each : o->memory_bytes - at,
            .offset = at,
            .gpa = GUEST_RAM_GPA + at + i * GUEST_HOLE_BYTES,
        };
}

int memory_open(struct memory *m, const struct options *o)
{
    bool backed = o->kind == MEMORY_MEMFD || o->kind == MEMORY_HUGETLBFS || o->memory_file;
    int fd = backed ? open_backing(o) : -1, r = 0;
    if (backed && fd < 0)
        return fd;
    *m = (struct memory){
        .bytes = o->memory_bytes, .n_regions = o->regions, .kind = o->kind, .fd = fd};
    cut_regions(m, o);
    for (unsigned i = 0; r == 0 && i < m->n_regions; i++)
        r = map_region(m, &m->regions[i], o);
    return r;
}

static const struct memory_region *region_of(const struct memory *m, uint64_t number)
{
    const struct memory_region *r = m->regions;
    while (number * GUEST_PAGE_BYTES >= r->offset + r->bytes)
        r++;
    return r;
}

uint8_t *memory_page(const struct memory *m, uint64_t number)
{
    const struct memory_region *r = region_of(m, number);
    return r->hva + (number * GUEST_PAGE_BYTES - r->offset);
}

uint64_t memory_pages_on(const struct memory *m, uint64_t number)
{
    const struct memory_region *r = region_of(m, number);
    return (r->offset + r->bytes) / GUEST_PAGE_BYTES - number;
}

int memory_discard(const struct memory *m, uint64_t number, uint64_t n)
{
    uint8_t *at = memory_page(m, number);
    size_t bytes = n * GUEST_PAGE_BYTES;
    if (m->fd < 0)
        return madvise(at, bytes, MADV_DONTNEED) ? -errno : 0;
    /* Of a file that is mapped privately: its content would come back. */
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    return mmap(at, bytes, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED ? -errno : 0;
}

void memory_map(const struct memory *m, struct guest_region *map, bool physical)
{
    for (unsigned i = 0; i < m->n_regions; i++) {
        const struct memory_region *r = &m->regions[i];
        uint64_t start = physical ? r->gpa : (uintptr_t)r->hva;
        map[i].end_page =
            i + 1 < m->n_regions ? (r->offset + r->bytes) / GUEST_PAGE_BYTES : UINT64_MAX;
        map[i].base = start - r->offset;
    }
}

struct guest_state *memory_state(const struct memory *m, unsigned vcpu)
{
    return (struct guest_state *)(void *)memory_page(m, vcpu);
}

bool memory_state_is_sound(const struct memory *m, const struct guest_state *s, unsigned vcpu,
                           unsigned cpus)
{
    uint64_t pages = m->bytes / GUEST_PAGE_BYTES;
    if (s->magic != GUEST_STATE_MAGIC || s->vcpu != vcpu || s->cpus != cpus ||
        s->pattern > GUEST_SEQUENTIAL || s->ram_pages != pages || s->populated_pages > pages)
        return false;
    if (s->first_page < cpus || s->first_page >= pages || s->n_pages > pages - s->first_page ||
        s->work_pages == 0 || s->work_pages > s->n_pages || s->position >= s->work_pages)
        return false;
    if (s->balloon_pages > pages || s->balloon_first > pages - s->balloon_pages ||
        s->reused > s->discarded || s->discarded - s->reused > s->balloon_pages ||
        (vcpu > 0 && s->balloon_pages))
        return false;
    return s->pending == 0 ||
           (s->pending >= s->first_page && s->pending < s->first_page + s->n_pages);
}

/* The share of a vCPU: of the pages that are populated, or of all if none are, less the balloon. */
static void set_share(struct guest_state *s, const struct options *o)
{
    uint64_t bytes = (o->populate_bytes ? o->populate_bytes : o->memory_bytes) - o->balloon_bytes;
    uint64_t total = bytes / GUEST_PAGE_BYTES;
    uint64_t each = (total - o->cpus) / o->cpus, hot = o->hot_bytes / GUEST_PAGE_BYTES / o->cpus;
    s->first_page = o->cpus + each * s->vcpu;
    s->n_pages = s->vcpu + 1 == o->cpus ? total - s->first_page : each;
    if (s->vcpu == 0) {
        s->balloon_first = total;
        s->balloon_pages = o->balloon_bytes / GUEST_PAGE_BYTES;
    }
    s->work_pages = o->hot_bytes == 0 || hot > s->n_pages ? s->n_pages : hot ? hot : 1;
}

static void set_state(const struct memory *m, const struct options *o, unsigned vcpu)
{
    struct guest_state *s = memory_state(m, vcpu);
    *s = (struct guest_state){
        .magic = GUEST_STATE_MAGIC,
        .vcpu = vcpu,
        .cpus = o->cpus,
        .pattern = o->pattern,
        .ram_pages = m->bytes / GUEST_PAGE_BYTES,
        .populated_pages = o->populate_bytes / GUEST_PAGE_BYTES,
        .generator = guest_mix(vcpu + 1),
    };
    set_share(s, o);
    if (s->populated_pages)
        for (uint64_t i = 0; i < s->n_pages; i++)
            s->sum += guest_check(s->first_page + i, 1);
}

#define LINE_WORDS 8u

static void set_line(uint64_t *line, uint64_t h)
{
    unsigned kind = (unsigned)(h >> 60);
    for (unsigned i = 0; i < LINE_WORDS; i++) {
        uint64_t word = (h + i) * 0xbf58476d1ce4e5b9ull;
        word ^= word >> 29;
        if (kind < 3)
            line[i] = word;
        else if (kind < 9)
            line[i] = guest_mix((h >> 32 & 7) * LINE_WORDS + i + 1);
        else if (kind < 13)
            line[i] = 0x00007f3400000000ull | (h >> 16 & 0xff0000) | (word & 0xfff0);
        else
            line[i] = 0;
    }
}

void memory_content(uint64_t number, uint64_t page[GUEST_PAGE_WORDS])
{
    for (unsigned i = 0; i < GUEST_PAGE_WORDS; i += LINE_WORDS) {
        uint64_t h = (number * GUEST_PAGE_WORDS + i + LINE_WORDS) * 0x9e3779b97f4a7c15ull;
        set_line(page + i, (h ^ h >> 32) * 0xd6e8feb86659fd93ull);
    }
}

static void fill_page(uint64_t *page, uint64_t number)
{
    uint64_t check = guest_check(number, 1);
    memory_content(number, page);
    for (unsigned i = 0; i < GUEST_MARKS; i++)
        page[guest_mark_word(i)] = guest_mark(check, i);
    *(struct guest_page *)(void *)page = (struct guest_page){number, 1, check};
}

struct filler {
    pthread_t thread;
    const struct memory *m;
    uint64_t first, end; /* pages */
};

static void *fill_pages(void *arg)
{
    const struct filler *f = arg;
    for (uint64_t i = f->first; i < f->end; i++)
        fill_page((uint64_t *)(void *)memory_page(f->m, i), i);
    return NULL;
}

void memory_fill(const struct memory *m, const struct options *o)
{
    struct filler fillers[MAX_FILLERS];
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned n = online < 1 ? 1 : online > (long)MAX_FILLERS ? MAX_FILLERS : (unsigned)online;
    uint64_t pages = o->populate_bytes / GUEST_PAGE_BYTES;
    for (unsigned i = 0; i < o->cpus; i++)
        set_state(m, o, i);
    if (pages == 0)
        return;
    for (unsigned i = 0; i < n; i++) {
        fillers[i] = (struct filler){.m = m,
                                     .first = o->cpus + (pages - o->cpus) * i / n,
                                     .end = o->cpus + (pages - o->cpus) * (i + 1) / n};
        if (i > 0 && pthread_create(&fillers[i].thread, NULL, fill_pages, &fillers[i]) != 0)
            fill_pages(&fillers[i]), fillers[i].thread = pthread_self();
    }
    fill_pages(&fillers[0]);
    for (unsigned i = 1; i < n; i++)
        if (!pthread_equal(fillers[i].thread, pthread_self()))
            pthread_join(fillers[i].thread, NULL);
}
