#include "restore/memory/window.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/kernel.h"
#include "common/log.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

/* ---- whether there can be one ---- */

static bool kernel_can(const struct block *b)
{
    const struct kernel_features *f = kernel_probe();
    return b->region.page_bytes == IMAGE_PAGE_BYTES ? f->minor_shmem : f->minor_hugetlb;
}

static bool may_write(int fd)
{
    int flags = fcntl(fd, F_GETFL), seals = fcntl(fd, F_GET_SEALS);
    return flags >= 0 && (flags & O_ACCMODE) == O_RDWR &&
           (seals < 0 || !(seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)));
}

static size_t read_text(int dir, const char *name, char *out, size_t size)
{
    CLEANUP_FD int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, out, size);
    return n < 0 ? 0 : (size_t)n;
}

/* Memory of tmpfs and hugetlbfs is charged to the control group of whoever has it allocated. */
static bool same_cgroup(const struct target *t)
{
    char ours[4096], theirs[4096];
    size_t n = read_text(AT_FDCWD, "/proc/self/cgroup", ours, sizeof(ours));
    size_t m = read_text(t->proc_fd, "cgroup", theirs, sizeof(theirs));
    return n == m && n < sizeof(ours) && memcmp(ours, theirs, n) == 0;
}

/* ---- opening ---- */

/* Neither copied on fork() (a child would be seen as one who works on the guest's memory) nor
 * dumped. */
static int open_window(struct block *b)
{
    uint64_t bytes = region_whole_pages(&b->region, b->bytes);
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, b->region.fd,
                    (off_t)b->region.fd_offset);
    if (at == MAP_FAILED)
        return -errno;
    madvise(at, bytes, MADV_DONTFORK);
    madvise(at, bytes, MADV_DONTDUMP);
    b->window = at;
    return 0;
}

void window_open_all(struct blocks *blocks, const struct target *t)
{
    bool same = same_cgroup(t);
    if (!same)
        log_debug("the VMM is in another control group: its shared memory is filled by copying");
    for (uint32_t i = 0; i < blocks->count && same; i++) {
        struct block *b = &blocks->items[i];
        if (b->region.kind == REGION_SHARED && kernel_can(b) && may_write(b->region.fd))
            open_window(b);
    }
}

void window_close_all(struct blocks *blocks)
{
    for (uint32_t i = 0; i < blocks->count; i++) {
        struct block *b = &blocks->items[i];
        if (b->window)
            munmap(b->window, region_whole_pages(&b->region, b->bytes));
        b->window = NULL;
    }
}

/* Whether the process can write the file: it has a mapping of it that is shared and writable. */
static bool process_writes(const struct mapping *m, const struct stat *file)
{
    return m->shared && m->writable && m->inode == file->st_ino &&
           makedev(m->dev_major, m->dev_minor) == file->st_dev;
}

static bool is_memory_file(int fd)
{
    struct statfs fs;
    return fstatfs(fd, &fs) == 0 && (fs.f_type == TMPFS_MAGIC || fs.f_type == HUGETLBFS_MAGIC);
}

/* The mapping that the block starts in, or the first one that is left of it. */
static const struct mapping *find_mapping(const struct mapping_list *maps, const struct block *b)
{
    for (size_t i = 0; i < maps->count; i++) {
        const struct mapping *m = &maps->items[i];
        if (m->end > b->region.hva && m->start < b->region.hva + b->bytes)
            return m;
    }
    return NULL;
}

static int open_file_of(struct block *b, const struct target *t, const struct mapping *m)
{
    char name[64];
    struct stat st;
    snprintf(name, sizeof(name), "map_files/%" PRIx64 "-%" PRIx64, m->start, m->end);
    CLEANUP_FD int fd = openat(t->proc_fd, name, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st))
        return -errno;
    if (!is_memory_file(fd))
        return -EBADF;
    /* The process may have put another file there since `m` was read, one that we may write and it
     * may not: so it is asked about the file that was opened. */
    struct mapping_list now = {0};
    struct error ignored = {0};
    int rc = target_mappings_brief(t, &now, &ignored);
    const struct mapping *same = rc ? NULL : find_mapping(&now, b);
    bool right = same && process_writes(same, &st) && same->offset + b->region.hva >= same->start;
    if (right) {
        b->region.fd_offset = same->offset + b->region.hva - same->start;
        b->region.fd = take_fd(&fd);
    }
    mapping_list_free(&now);
    return rc ? rc : right ? 0 : -EBADF;
}

int window_reopen(struct block *b, const struct target *t)
{
    struct mapping_list maps = {0};
    struct error ignored = {0};
    int rc = target_mappings_brief(t, &maps, &ignored);
    if (rc)
        return rc;
    const struct mapping *m = find_mapping(&maps, b);
    rc = m ? open_file_of(b, t, m) : -ENOENT;
    mapping_list_free(&maps);
    return rc ? rc : open_window(b);
}

/* ---- writing ---- */

static _Thread_local sigjmp_buf *volatile way_out;

static void on_bus_error(int number)
{
    if (way_out)
        siglongjmp(*way_out, 1);
    signal(number, SIG_DFL);
    raise(number);
}

static void catch_bus_errors(void)
{
    struct sigaction action = {.sa_handler = on_bus_error, .sa_flags = SA_NODEFER};
    sigaction(SIGBUS, &action, NULL);
}

/* Threads start with all signals blocked, and one that is blocked kills when the kernel forces
 * it. */
static void allow_bus_errors(void)
{
    static _Thread_local bool allowed;
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (allowed)
        return;
    pthread_once(&once, catch_bus_errors);
    sigset_t bus;
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    pthread_sigmask(SIG_UNBLOCK, &bus, NULL);
    allowed = true;
}

int window_guard(int (*run)(void *opaque), void *opaque)
{
    sigjmp_buf here;
    allow_bus_errors();
    if (sigsetjmp(here, 0)) {
        way_out = NULL;
        return -EFAULT;
    }
    way_out = &here;
    atomic_signal_fence(memory_order_seq_cst);
    int rc = run(opaque);
    atomic_signal_fence(memory_order_seq_cst);
    way_out = NULL;
    return rc;
}

static int advise(const struct block *b, uint64_t offset, uint64_t len, int advice)
{
    uint64_t start = offset - offset % b->region.page_bytes;
    uint64_t end = region_whole_pages(&b->region, offset + len);
    return madvise(window_at(b, start), end - start, advice) ? -errno : 0;
}

int window_populate(const struct block *b, uint64_t offset, uint64_t len)
{
    return advise(b, offset, len, MADV_POPULATE_WRITE);
}

struct piece {
    unsigned char *to;
    const void *from;
    uint64_t len;
};

static int write_piece(void *opaque)
{
    const struct piece *p = opaque;
    memcpy(p->to, p->from, p->len);
    return 0;
}

int window_write(const struct block *b, uint64_t offset, const void *data, uint64_t len)
{
    struct piece p = {.to = window_at(b, offset), .from = data, .len = len};
    int rc = window_populate(b, offset, len);
    if (rc == 0)
        rc = window_guard(write_piece, &p);
    window_forget(b, offset, len);
    return rc == -EFAULT ? -ENOSPC : rc; /* what it nearly always means */
}

void window_forget(const struct block *b, uint64_t offset, uint64_t len)
{
    advise(b, offset, len, MADV_DONTNEED);
}

int window_empty(const struct block *b, uint64_t offset, uint64_t len)
{
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    return fallocate(b->region.fd, mode, (off_t)(b->region.fd_offset + offset), (off_t)len) ? -errno
                                                                                            : 0;
}
