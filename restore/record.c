/*
 * record.c - see record.h.
 *
 * Layout: the header, the table of blocks, and, from a page's start on, a byte per cluster (as
 * page_state.h has it). In the host's own byte order: it never leaves this machine.
 */
#include "restore/record.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/inject.h"

#define MAGIC "vmsnaprr"
#define VERSION 1u
#define MAX_BLOCKS 4096u
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

struct record_block {
    char name[REGION_NAME_MAX];
    uint64_t hva, bytes, page_bytes;
    uint32_t kind; /* enum region_kind */
    uint32_t reserved;
};

enum record_stage { RECORD_NEW, RECORD_READY, RECORD_RELEASED };

struct record_header {
    char magic[8];
    uint32_t version;
    uint32_t n_blocks;
    uint64_t total_bytes;
    uint64_t n_clusters;
    uint64_t states_at;
    uint8_t image_id[16];
    atomic_uint stage; /* enum record_stage */
    int32_t uffd;
    uint32_t fill;
    uint32_t reserved;
    char image_path[PATH_MAX];
    struct uffd_msg messages[SERVER_MESSAGES];
    struct record_block blocks[];
};

static uint64_t states_at(uint32_t n_blocks)
{
    uint64_t end = sizeof(struct record_header) + (uint64_t)n_blocks * sizeof(struct record_block);
    return (end + IMAGE_PAGE_BYTES - 1) / IMAGE_PAGE_BYTES * IMAGE_PAGE_BYTES;
}

/* ---- opening ---- */

static int open_there(const struct target *t, int number)
{
    char name[32];
    snprintf(name, sizeof(name), "fd/%d", number);
    int fd = openat(t->proc_fd, name, O_RDWR | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static int lock_and_map(struct record *r, const struct target *t, struct error *e)
{
    if (flock(r->lock_fd, LOCK_EX | LOCK_NB)) {
        if (errno != EWOULDBLOCK)
            return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't lock the record in process %d",
                             (int)t->pid);
        error_set(e, VMSNAP_EXIT_BUSY, 0, "process %d is served by another vmsnap already",
                  (int)t->pid);
        return -EBUSY;
    }
    void *at = mmap(NULL, r->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, r->lock_fd, 0);
    if (at == MAP_FAILED)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't map the record in process %d",
                         (int)t->pid);
    r->header = at;
    /* While a message is written to it nothing may go wrong (serve.h). */
    mlock(at, sizeof(struct record_header));
    return 0;
}

void record_close(struct record *r)
{
    if (r->header)
        munmap(r->header, r->bytes);
    if (r->lock_fd >= 0)
        close(r->lock_fd);
    *r = (struct record){.lock_fd = -1, .target_fd = -1};
}

/* ---- a new one ---- */

static void write_header(struct record *r, const struct image *img, const char *path,
                         const struct blocks *blocks, bool fill)
{
    struct record_header *h = r->header;
    *h = (struct record_header){.version = VERSION,
                                .n_blocks = blocks->count,
                                .total_bytes = r->bytes,
                                .n_clusters = image_get_trailer(img)->n_clusters,
                                .states_at = states_at(blocks->count),
                                .uffd = -1,
                                .fill = fill};
    memcpy(h->image_id, image_get_header(img)->image_id, sizeof(h->image_id));
    snprintf(h->image_path, sizeof(h->image_path), "%s", path);
    for (uint32_t i = 0; i < blocks->count; i++) {
        const struct block *b = &blocks->items[i];
        struct record_block *to = &h->blocks[i];
        memcpy(to->name, b->region.name, sizeof(to->name));
        to->hva = b->region.hva;
        to->bytes = b->bytes;
        to->page_bytes = b->region.page_bytes;
        to->kind = b->region.kind;
    }
    memcpy(h->magic, MAGIC, sizeof(h->magic));
}

static int size_and_seal(struct record *r, struct error *e)
{
    if (ftruncate(r->lock_fd, (off_t)r->bytes) || fcntl(r->lock_fd, F_ADD_SEALS, SEALS))
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't make the record of the restore");
    return 0;
}

int record_create(struct record *r, const struct target *t, const struct image *img,
                  const char *image_path, const struct blocks *blocks, bool fill, int timeout_ms,
                  struct error *e)
{
    *r = (struct record){.lock_fd = -1, .target_fd = -1};
    CLEANUP_FREE char *path = realpath(image_path, NULL);
    if (!path)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't tell where %s lies", image_path);
    r->bytes = states_at(blocks->count) + image_get_trailer(img)->n_clusters;
    int rc = inject_memfd(t, RECORD_NAME, &r->target_fd, timeout_ms, e);
    if (rc)
        return rc;
    r->lock_fd = open_there(t, r->target_fd);
    if (r->lock_fd < 0)
        rc = error_set(e, VMSNAP_EXIT_TARGET, -r->lock_fd, "can't open the record in process %d",
                       (int)t->pid);
    if (rc == 0)
        rc = size_and_seal(r, e);
    if (rc == 0)
        rc = lock_and_map(r, t, e);
    if (rc)
        record_close(r);
    else
        write_header(r, img, path, blocks, fill);
    return rc;
}

void record_ready(struct record *r, int uffd)
{
    r->header->uffd = uffd;
    atomic_store(&r->header->stage, RECORD_READY);
}

void record_released(struct record *r)
{
    atomic_store(&r->header->stage, RECORD_RELEASED);
}

bool record_is_released(const struct record *r)
{
    return atomic_load(&r->header->stage) == RECORD_RELEASED;
}

/* ---- somebody else's ---- */

/* The number of the VMM's descriptor of it, or -errno; -ENOENT: none. */
static int find_there(const struct target *t)
{
    int dir = openat(t->proc_fd, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0)
        return -errno;
    DIR *d = fdopendir(dir);
    if (!d) {
        close(dir);
        return -ENOMEM;
    }
    int found = -ENOENT;
    for (struct dirent *entry; found < 0 && (entry = readdir(d));) {
        char link[64];
        ssize_t n = readlinkat(dirfd(d), entry->d_name, link, sizeof(link));
        if (n == (ssize_t)strlen(RECORD_LINK) && memcmp(link, RECORD_LINK, (size_t)n) == 0)
            found = atoi(entry->d_name);
    }
    closedir(d);
    return found;
}

static int refuse(const struct target *t, const char *why, struct error *e)
{
    error_set(e, VMSNAP_EXIT_TARGET, EBADMSG, "process %d: its record of the restore %s",
              (int)t->pid, why);
    return -EBADMSG;
}

static bool is_sound(const struct record *r)
{
    const struct record_header *h = r->header;
    uint32_t n_blocks = h->n_blocks;
    uint64_t n_clusters = h->n_clusters;
    return memcmp(h->magic, MAGIC, sizeof(h->magic)) == 0 && h->version == VERSION &&
           n_blocks <= MAX_BLOCKS && h->total_bytes == r->bytes &&
           h->states_at == states_at(n_blocks) && h->states_at <= r->bytes &&
           n_clusters == r->bytes - h->states_at &&
           memchr(h->image_path, '\0', sizeof(h->image_path)) && h->image_path[0] == '/';
}

static int check_file(struct record *r, const struct target *t, struct error *e)
{
    struct stat st;
    int seals = fcntl(r->lock_fd, F_GET_SEALS);
    if (fstat(r->lock_fd, &st) || seals < 0 || (seals & SEALS) != SEALS)
        return refuse(t, "is not of vmsnap's making", e);
    if (st.st_size < (off_t)sizeof(struct record_header))
        return refuse(t, "is too short", e);
    r->bytes = (uint64_t)st.st_size;
    return 0;
}

int record_open(struct record *r, const struct target *t, struct error *e)
{
    *r = (struct record){.lock_fd = -1, .target_fd = find_there(t)};
    if (r->target_fd == -ENOENT) {
        error_set(e, VMSNAP_EXIT_TARGET, 0, "process %d is not being restored by vmsnap",
                  (int)t->pid);
        error_hint(e,
                   "either all of its memory is in, or it was never started by 'vmsnap restore'");
        return -ENOENT;
    }
    r->lock_fd = r->target_fd < 0 ? r->target_fd : open_there(t, r->target_fd);
    if (r->lock_fd < 0)
        return error_set(e, VMSNAP_EXIT_TARGET, -r->lock_fd,
                         "can't look at the descriptors of process %d", (int)t->pid);
    int rc = check_file(r, t, e);
    if (rc == 0)
        rc = lock_and_map(r, t, e);
    if (rc == 0 && !is_sound(r))
        rc = refuse(t, "makes no sense", e);
    if (rc == 0 && atomic_load(&r->header->stage) == RECORD_NEW)
        rc = refuse(t, "was never finished: its guest has not run", e);
    if (rc)
        record_close(r);
    return rc;
}

/* ---- what it says ---- */

const char *record_image_path(const struct record *r)
{
    return r->header->image_path;
}

const uint8_t *record_image_id(const struct record *r)
{
    return r->header->image_id;
}

bool record_fills(const struct record *r)
{
    return r->header->fill;
}

int record_uffd(const struct record *r)
{
    return r->header->uffd;
}

struct uffd_msg *record_messages(const struct record *r)
{
    return r->header->messages;
}

static bool read_block(const struct record_block *from, struct region *to)
{
    struct record_block b = *from; /* once: the VMM may write to it */
    *to = (struct region){.hva = b.hva,
                          .bytes = b.bytes,
                          .max_bytes = b.bytes,
                          .page_bytes = b.page_bytes,
                          .kind = (enum region_kind)b.kind,
                          .fd = -1};
    memcpy(to->name, b.name, sizeof(to->name));
    bool power_of_two = b.page_bytes && (b.page_bytes & (b.page_bytes - 1)) == 0;
    return memchr(b.name, '\0', sizeof(b.name)) && power_of_two &&
           b.page_bytes >= IMAGE_PAGE_BYTES && b.hva % b.page_bytes == 0 &&
           b.hva + b.bytes >= b.hva && b.kind <= REGION_PRIVATE_FILE;
}

int record_regions(const struct record *r, struct region **out, uint32_t *n)
{
    uint32_t count = r->header->n_blocks;
    if (states_at(count) > r->bytes)
        return -EBADMSG;
    struct region *regions = calloc(count ? count : 1, sizeof(*regions));
    if (!regions)
        return -ENOMEM;
    for (uint32_t i = 0; i < count; i++)
        if (!read_block(&r->header->blocks[i], &regions[i])) {
            free(regions);
            return -EBADMSG;
        }
    *out = regions;
    *n = count;
    return 0;
}

bool record_states(const struct record *r, uint64_t n_clusters, struct page_state *out)
{
    uint64_t at = states_at(r->header->n_blocks);
    if (at > r->bytes || r->bytes - at != n_clusters)
        return false;
    page_state_map(out, (unsigned char *)r->header + at, n_clusters);
    return true;
}
