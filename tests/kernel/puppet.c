#include "puppet.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ktest.h"

#define PAGE 4096ul

enum action {
    ACTION_NONE,
    ACTION_WRITE,
    ACTION_READ,
    ACTION_WRITE_ALL,
    ACTION_FILL,
    ACTION_MADVISE
};

struct puppet {
    enum puppet_memory memory;
    size_t bytes;
    bool (*filled)(size_t page);
    pid_t pid;
    struct target target;
    uint64_t address;
    int fd;
    atomic_int ready; /* 1: mapped, 2: no such memory */
    atomic_int begun, done;
    enum action action;
    size_t page, n_pages;
    int advice, result;
    uint8_t value;
};

const char *const puppet_memory_names[PUPPET_N_MEMORIES] = {
    "private anonymous", "memfd",          "shared anonymous",
    "private tmpfs",     "hugetlb shared", "hugetlb private",
};

uint8_t puppet_pattern(size_t page)
{
    return (uint8_t)(page % 251 + 1);
}

static int make_file(const struct puppet *p)
{
    unsigned flags = p->memory == PUPPET_HUGE_SHARED ? MFD_HUGETLB : 0;
    int fd = memfd_create("puppet", MFD_CLOEXEC | flags);
    if (fd >= 0 && ftruncate(fd, (off_t)p->bytes) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static bool fill_file(const struct puppet *p)
{
    uint8_t page[PAGE];
    for (size_t i = 0; p->filled && i < p->bytes / PAGE; i++) {
        memset(page, puppet_pattern(i), PAGE);
        if (p->filled(i) && pwrite(p->fd, page, PAGE, (off_t)(i * PAGE)) != PAGE)
            return false;
    }
    return true;
}

static void *map_memory(struct puppet *p)
{
    const int prot = PROT_READ | PROT_WRITE;
    p->fd = -1;
    switch (p->memory) {
    case PUPPET_ANON:
        return mmap(NULL, p->bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    case PUPPET_SHARED_ANON:
        return mmap(NULL, p->bytes, prot, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    case PUPPET_HUGE_PRIVATE:
        return mmap(NULL, p->bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    case PUPPET_MEMFD:
    case PUPPET_HUGE_SHARED:
        p->fd = make_file(p);
        return p->fd < 0 ? MAP_FAILED : mmap(NULL, p->bytes, prot, MAP_SHARED, p->fd, 0);
    case PUPPET_PRIVATE_TMPFS:
        p->fd = make_file(p);
        if (p->fd < 0 || !fill_file(p))
            return MAP_FAILED;
        return mmap(NULL, p->bytes, prot, MAP_PRIVATE, p->fd, 0);
    case PUPPET_N_MEMORIES:
        break;
    }
    return MAP_FAILED;
}

static uint8_t *page_of(const struct puppet *p, size_t page)
{
    return (uint8_t *)(uintptr_t)p->address + page * PAGE;
}

static void act(struct puppet *p)
{
    volatile uint8_t *middle = page_of(p, p->page) + PAGE / 2;
    switch (p->action) {
    case ACTION_WRITE:
        *middle = p->value;
        break;
    case ACTION_READ:
        p->value = *middle;
        break;
    case ACTION_WRITE_ALL:
        for (size_t i = p->page; i < p->page + p->n_pages; i++)
            *(volatile uint8_t *)(page_of(p, i) + PAGE / 2) = p->value;
        break;
    case ACTION_FILL:
        for (size_t i = p->page; i < p->page + p->n_pages; i++)
            memset(page_of(p, i), puppet_pattern(i), PAGE);
        break;
    case ACTION_MADVISE:
        p->result = madvise(page_of(p, p->page), p->n_pages * PAGE, p->advice) == 0 ? 0 : -errno;
        break;
    case ACTION_NONE:
        break;
    }
}

static int dance(void *opaque)
{
    struct puppet *p = opaque;
    void *memory = map_memory(p);
    if (memory == MAP_FAILED) {
        atomic_store(&p->ready, 2);
        return KTEST_SKIP;
    }
    p->address = (uintptr_t)memory;
    /* Small pages, unless they are huge: what a fault is about is then certain. */
    if (p->memory <= PUPPET_PRIVATE_TMPFS)
        madvise(memory, p->bytes, MADV_NOHUGEPAGE);
    for (size_t i = 0; p->memory != PUPPET_PRIVATE_TMPFS && i < p->bytes / PAGE; i++) {
        if (p->filled && p->filled(i))
            memset(page_of(p, i), puppet_pattern(i), PAGE);
    }
    atomic_store(&p->ready, 1);
    for (int n = 0;; n++) {
        while (atomic_load(&p->begun) == n)
            poll(NULL, 0, 0), usleep(50);
        act(p);
        atomic_store(&p->done, n + 1);
    }
}

/* Enough huge pages that are free: without them the puppet would get SIGBUS. */
static bool huge_pages_free(size_t bytes)
{
    char line[128];
    size_t n = 0;
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && fgets(line, sizeof(line), f))
        sscanf(line, "HugePages_Free: %zu", &n);
    if (f)
        fclose(f);
    return n * (2ul << 20) >= bytes;
}

struct puppet *puppet_start(enum puppet_memory memory, size_t bytes, bool (*filled)(size_t page))
{
    struct puppet *p = ktest_shared(sizeof(*p));
    struct error e = {0};
    bool huge = memory == PUPPET_HUGE_SHARED || memory == PUPPET_HUGE_PRIVATE;
    if (huge && !huge_pages_free(bytes))
        return NULL;
    p->memory = memory;
    p->bytes = bytes;
    p->filled = filled;
    p->pid = ktest_spawn(dance, p);
    if (!KTEST_WAIT(atomic_load(&p->ready) || ktest_ended(p->pid)) || atomic_load(&p->ready) != 1)
        return NULL;
    if (target_open(&p->target, p->pid, &e) != 0) {
        printf("    %s\n", e.message);
        exit(KTEST_FAIL);
    }
    return p;
}

pid_t puppet_pid(const struct puppet *p)
{
    return p->pid;
}

uint64_t puppet_address(const struct puppet *p)
{
    return p->address;
}

int puppet_fd(const struct puppet *p)
{
    return p->fd;
}

const struct target *puppet_target(const struct puppet *p)
{
    return &p->target;
}

int puppet_region(const struct puppet *p, struct region *r, struct error *e)
{
    struct mapping_list maps;
    int err = target_mappings(&p->target, &maps, e);
    if (err)
        return err;
    *r = (struct region){.hva = p->address, .bytes = p->bytes, .max_bytes = p->bytes};
    snprintf(r->name, sizeof(r->name), "puppet");
    err = region_classify(r, &p->target, &maps, e);
    mapping_list_free(&maps);
    return err;
}

static void begin(struct puppet *p, enum action action, size_t page)
{
    p->action = action;
    p->page = page;
    atomic_fetch_add(&p->begun, 1);
}

void puppet_write_begin(struct puppet *p, size_t page, uint8_t value)
{
    p->value = value;
    begin(p, ACTION_WRITE, page);
}

void puppet_write_all_begin(struct puppet *p, size_t page, size_t n_pages, uint8_t value)
{
    p->value = value;
    p->n_pages = n_pages;
    begin(p, ACTION_WRITE_ALL, page);
}

void puppet_read_begin(struct puppet *p, size_t page)
{
    begin(p, ACTION_READ, page);
}

void puppet_madvise_begin(struct puppet *p, size_t page, size_t n_pages, int advice)
{
    p->n_pages = n_pages;
    p->advice = advice;
    begin(p, ACTION_MADVISE, page);
}

bool puppet_is_done(const struct puppet *p)
{
    return atomic_load(&p->done) == atomic_load(&p->begun);
}

bool puppet_wait(struct puppet *p, uint8_t *value)
{
    if (!KTEST_WAIT(puppet_is_done(p) || ktest_ended(p->pid)) || ktest_ended(p->pid))
        return false;
    if (value)
        *value = p->value;
    return true;
}

bool puppet_write(struct puppet *p, size_t page, uint8_t value)
{
    puppet_write_begin(p, page, value);
    return puppet_wait(p, NULL);
}

bool puppet_read(struct puppet *p, size_t page, uint8_t *value)
{
    puppet_read_begin(p, page);
    return puppet_wait(p, value);
}

bool puppet_madvise(struct puppet *p, size_t page, size_t n_pages, int advice)
{
    puppet_madvise_begin(p, page, n_pages, advice);
    return puppet_wait(p, NULL) && p->result == 0;
}

bool puppet_fill(struct puppet *p, size_t page, size_t n_pages)
{
    p->n_pages = n_pages;
    begin(p, ACTION_FILL, page);
    return puppet_wait(p, NULL);
}

int puppet_result(const struct puppet *p)
{
    return p->result;
}
