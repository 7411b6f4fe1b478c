/*
 * record.c - see record.h.
 *
 * Layout: the header, the table of blocks, and, from a page's start on, a byte per cluster (as
 * page_state.h has it). In the host's own byte order: it never leaves this machine.
 */
#include "restore/record.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/inject.h"
#include "common/testhook.h"

#define MAX_BLOCKS 4096u
#define LOCK_WAIT_NS 1000000000ull
#define ASK_WAIT_NS 10000000000ull /* for a server that lives to let go */
#define ASKER_COMES_NS 2000000000ull
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

struct record_block {
    char name[REGION_NAME_MAX];
    uint64_t hva, bytes, page_bytes;
    uint32_t kind;       /* enum region_kind */
    uint32_t has_window; /* registered for minor faults too, and filled through a window */
};

enum record_wish { WISH_NONE, WISH_HAND_OVER, WISH_REFUSED };

struct record_header {
    struct record_facts facts;
    atomic_uint stage; /* enum record_stage */
    atomic_uint guest; /* enum record_guest */
    atomic_uint wish;  /* enum record_wish */
    uint32_t reserved;
    struct uffd_msg messages[SERVER_MESSAGES];
    struct record_block blocks[];
};
static_assert(offsetof(struct record_header, stage) == offsetof(struct record_head, stage),
              "what others look at");
static_assert(CLUSTER_DONE == RECORD_STATE_DONE && CLUSTER_DAMAGED == RECORD_STATE_DAMAGED,
              "what others look at");

static uint64_t states_at(uint32_t n_blocks)
{
    uint64_t end = sizeof(struct record_header) + (uint64_t)n_blocks * sizeof(struct record_block);
    return (end + IMAGE_PAGE_BYTES - 1) / IMAGE_PAGE_BYTES * IMAGE_PAGE_BYTES;
}

/* ---- opening ---- */

static int refuse(const struct target *t, const char *why, struct error *e)
{
    error_set(e, VMSNAP_EXIT_TARGET, EBADMSG, "process %d: its record of the restore %s",
              (int)t->pid, why);
    return -EBADMSG;
}

/*
 * An opening of our own (which is what a lock belongs to) of what the VMM has as r->target_fd. The
 * VMM may put any file there at any time, so what is looked at, and then opened, is our duplicate
 * of that descriptor. `is_right`: whether its seals and its length are as they have to be.
 */
static int open_there(struct record *r, const struct target *t,
                      bool (*is_right)(int seals, off_t bytes), struct error *e)
{
    CLEANUP_FD int copy = target_get_fd(t, r->target_fd);
    if (copy < 0)
        return error_set(e, VMSNAP_EXIT_TARGET, -copy, "can't get the record from process %d",
                         (int)t->pid);
    char name[32];
    struct stat st;
    snprintf(name, sizeof(name), "/proc/self/fd/%d", copy);
    int seals = fcntl(copy, F_GET_SEALS);
    if (!restore_record_is(copy) || seals < 0 || fstat(copy, &st) || !is_right(seals, st.st_size))
        return refuse(t, "is not of vmsnap's making", e);
    r->lock_fd = open(name, O_RDWR | O_CLOEXEC);
    if (r->lock_fd < 0)
        return error_set(e, VMSNAP_EXIT_TARGET, errno, "can't open the record in process %d",
                         (int)t->pid);
    return 0;
}

/* The lock of a server that was killed goes only with the last of its threads. One that lives is
 * asked for it if `asks`. */
static int take_lock(struct record *r, bool asks)
{
    uint64_t until_ns = clock_monotonic_ns() + (asks ? ASK_WAIT_NS : LOCK_WAIT_NS);
    int rc;
    if (asks) {
        atomic_store(&r->header->wish, WISH_HAND_OVER);
        TESTHOOK_POINT("asked-for-guest");
    }
    while ((rc = flock(r->lock_fd, LOCK_EX | LOCK_NB) ? -errno : 0)) {
        if (rc != -EWOULDBLOCK || clock_monotonic_ns() >= until_ns ||
            (asks && atomic_load(&r->header->wish) == WISH_REFUSED))
            break;
        usleep(10000);
    }
    if (asks)
        atomic_store(&r->header->wish, WISH_NONE);
    return rc;
}

static int lock(struct record *r, const struct target *t, bool asks, struct error *e)
{
    int rc = take_lock(r, asks);
    if (rc == -EWOULDBLOCK) {
        error_set(e, VMSNAP_EXIT_BUSY, 0, "process %d is served by another vmsnap already",
                  (int)t->pid);
        error_hint(e, asks ? "it has no trouble with its image, or does not answer: if so, kill it"
                           : "if that one was killed it may still be ending: try again in a "
                             "moment; to have it give way to a sound copy of its image, name that");
        return -EBUSY;
    }
    if (rc)
        return error_set(e, VMSNAP_EXIT_FAILED, -rc, "can't lock the record in process %d",
                         (int)t->pid);
    return 0;
}

static int map(struct record *r, const struct target *t, struct error *e)
{
    void *at = mmap(NULL, r->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, r->lock_fd, 0);
    if (at == MAP_FAILED)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't map the record in process %d",
                         (int)t->pid);
    r->header = at;
    /* A mapping keeps the lock as a descriptor does: no process forked from here may have it. */
    madvise(at, r->bytes, MADV_DONTFORK);
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
                         const struct blocks *blocks)
{
    struct record_facts *f = &r->facts;
    *f = (struct record_facts){.version = RECORD_VERSION,
                               .n_blocks = blocks->count,
                               .total_bytes = r->bytes,
                               .n_clusters = image_get_trailer(img)->n_clusters,
                               .states_at = states_at(blocks->count),
                               .uffd = -1};
    memcpy(f->magic, RECORD_MAGIC, sizeof(f->magic));
    memcpy(f->image_id, image_get_header(img)->image_id, sizeof(f->image_id));
    snprintf(f->image_path, sizeof(f->image_path), "%s", path);
    r->header->facts = *f;
    for (uint32_t i = 0; i < blocks->count; i++) {
        const struct block *b = &blocks->items[i];
        struct record_block *to = &r->header->blocks[i];
        memcpy(to->name, b->region.name, sizeof(to->name));
        to->hva = b->region.hva;
        to->bytes = b->bytes;
        to->page_bytes = b->region.page_bytes;
        to->kind = b->region.kind;
        to->has_window = b->window != NULL;
    }
}

static bool is_fresh(int seals, off_t bytes)
{
    return !(seals & F_SEAL_SEAL) && bytes == 0;
}

/* The VMM could change the length until the seals are on, so it is looked at afterwards. */
static int size_and_seal(struct record *r, const struct target *t, struct error *e)
{
    struct stat st;
    if (ftruncate(r->lock_fd, (off_t)r->bytes) || fcntl(r->lock_fd, F_ADD_SEALS, SEALS) ||
        fstat(r->lock_fd, &st))
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't make the record of the restore");
    return (uint64_t)st.st_size == r->bytes ? 0 : refuse(t, "was cut short", e);
}

int record_create(struct record *r, const struct target *t, const struct image *img,
                  const char *image_path, const struct blocks *blocks, int timeout_ms,
                  struct error *e)
{
    *r = (struct record){.lock_fd = -1, .target_fd = -1};
    CLEANUP_FREE char *path = realpath(image_path, NULL);
    r->bytes = states_at(blocks->count) + image_get_trailer(img)->n_clusters;
    int rc = inject_memfd(t, RECORD_NAME, &r->target_fd, timeout_ms, e);
    if (rc)
        return rc;
    rc = open_there(r, t, is_fresh, e);
    if (rc == 0)
        rc = size_and_seal(r, t, e);
    if (rc == 0)
        rc = map(r, t, e);
    if (rc == 0)
        rc = lock(r, t, false, e);
    if (rc)
        record_close(r);
    else
        write_header(r, img, path ? path : "", blocks);
    return rc;
}

void record_ready(struct record *r, int uffd)
{
    r->facts.uffd = uffd;
    r->header->facts.uffd = uffd;
    atomic_store(&r->header->stage, RECORD_READY);
}

void record_released(struct record *r)
{
    atomic_store(&r->header->stage, RECORD_RELEASED);
}

void record_set_guest(struct record *r, enum record_guest guest)
{
    atomic_store(&r->header->guest, (unsigned)guest);
}

void record_uffd_closed(struct record *r)
{
    r->facts.uffd = -1;
    r->header->facts.uffd = -1;
}

bool record_is_released(const struct record *r)
{
    return atomic_load(&r->header->stage) == RECORD_RELEASED;
}

/* ---- handing over ---- */

bool record_is_served(const struct record *r)
{
    if (flock(r->lock_fd, LOCK_EX | LOCK_NB))
        return errno == EWOULDBLOCK;
    flock(r->lock_fd, LOCK_UN);
    return false;
}

bool record_is_asked_for(const struct record *r)
{
    return atomic_load(&r->header->wish) == WISH_HAND_OVER;
}

void record_refuse(struct record *r)
{
    atomic_store(&r->header->wish, WISH_REFUSED);
}

/* Only while it is not through. */
static bool take_back(struct record *r)
{
    if (flock(r->lock_fd, LOCK_EX | LOCK_NB))
        return false;
    if (record_is_released(r))
        flock(r->lock_fd, LOCK_UN);
    return !record_is_released(r);
}

bool record_take_back(struct record *r)
{
    return !record_is_released(r) && take_back(r);
}

bool record_hand_over(struct record *r)
{
    uint64_t until_ns = clock_monotonic_ns() + ASKER_COMES_NS;
    flock(r->lock_fd, LOCK_UN);
    while (record_is_asked_for(r) && clock_monotonic_ns() < until_ns)
        usleep(5000);
    bool is_ours = take_back(r);
    if (is_ours)
        atomic_store(&r->header->wish, WISH_NONE);
    return !is_ours;
}

/* ---- somebody else's ---- */

static bool is_sealed(int seals, off_t bytes)
{
    return (seals & SEALS) == SEALS && bytes >= (off_t)sizeof(struct record_header);
}

/* What was checked must be what is used later. */
static void copy_facts(struct record *r)
{
    memcpy(&r->facts, &r->header->facts, sizeof(r->facts));
    atomic_signal_fence(memory_order_seq_cst);
}

static bool is_sound(const struct record *r)
{
    const struct record_facts *f = &r->facts;
    return memcmp(f->magic, RECORD_MAGIC, sizeof(f->magic)) == 0 && f->version == RECORD_VERSION &&
           f->n_blocks <= MAX_BLOCKS && f->total_bytes == r->bytes &&
           f->states_at == states_at(f->n_blocks) && f->states_at <= r->bytes &&
           f->n_clusters == r->bytes - f->states_at &&
           memchr(f->image_path, '\0', sizeof(f->image_path)) &&
           (f->image_path[0] == '/' || f->image_path[0] == '\0');
}

/* Sealed: the length stays as it is. */
static int learn_length(struct record *r, struct error *e)
{
    struct stat st;
    if (fstat(r->lock_fd, &st))
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't look at the record");
    r->bytes = (uint64_t)st.st_size;
    return 0;
}

static int check(struct record *r, const struct target *t, struct error *e)
{
    copy_facts(r);
    return is_sound(r) ? 0 : refuse(t, "makes no sense", e);
}

int record_open(struct record *r, const struct target *t, struct error *e)
{
    *r = (struct record){.lock_fd = -1, .target_fd = restore_record_find(t)};
    if (r->target_fd == -ENOENT) {
        error_set(e, VMSNAP_EXIT_TARGET, 0, "process %d is not being restored by vmsnap",
                  (int)t->pid);
        error_hint(e,
                   "either all of its memory is in, or it was never started by 'vmsnap restore'");
        return -ENOENT;
    }
    if (r->target_fd < 0)
        return error_set(e, VMSNAP_EXIT_TARGET, -r->target_fd,
                         "can't look at the descriptors of process %d", (int)t->pid);
    int rc = open_there(r, t, is_sealed, e);
    if (rc == 0)
        rc = learn_length(r, e);
    if (rc == 0)
        rc = map(r, t, e);
    if (rc == 0)
        rc = check(r, t, e);
    if (rc)
        record_close(r);
    return rc;
}

int record_lock(struct record *r, const struct target *t, bool asks, struct error *e)
{
    int rc = lock(r, t, asks, e);
    if (rc == 0)
        rc = check(r, t, e); /* its server may have written to it since */
    if (rc == 0 && atomic_load(&r->header->stage) == RECORD_NEW)
        rc = refuse(t, "was never finished: its guest has not run", e);
    return rc;
}

/* ---- what it says ---- */

const char *record_image_path(const struct record *r)
{
    return r->facts.image_path;
}

const uint8_t *record_image_id(const struct record *r)
{
    return r->facts.image_id;
}

enum record_guest record_get_guest(const struct record *r)
{
    unsigned guest = atomic_load(&r->header->guest);
    return guest == RECORD_GUEST_LET_RUN || guest == RECORD_GUEST_LEFT_PAUSED
               ? (enum record_guest)guest
               : RECORD_GUEST_HELD;
}

int record_uffd(const struct record *r)
{
    return r->facts.uffd;
}

struct uffd_msg *record_messages(const struct record *r)
{
    return r->header->messages;
}

static bool is_page_size(uint64_t bytes)
{
    return bytes == IMAGE_PAGE_BYTES || bytes == 2ull << 20 || bytes == 1ull << 30;
}

static bool read_block(const struct record_block *from, struct region *to)
{
    struct record_block b = *from; /* once: the VMM may write to it */
    atomic_signal_fence(memory_order_seq_cst);
    *to = (struct region){.hva = b.hva,
                          .bytes = b.bytes,
                          .max_bytes = b.bytes,
                          .page_bytes = b.page_bytes,
                          .kind = (enum region_kind)b.kind,
                          .fd = -1};
    memcpy(to->name, b.name, sizeof(to->name));
    return memchr(b.name, '\0', sizeof(b.name)) && is_page_size(b.page_bytes) &&
           b.hva % b.page_bytes == 0 && b.hva + b.bytes >= b.hva && b.kind >= REGION_ANON &&
           b.kind <= REGION_PRIVATE_FILE;
}

int record_regions(const struct record *r, struct region **out, uint32_t *n)
{
    uint32_t count = r->facts.n_blocks;
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

bool record_has_window(const struct record *r, uint64_t hva)
{
    for (uint32_t i = 0; i < r->facts.n_blocks; i++)
        if (r->header->blocks[i].hva == hva)
            return r->header->blocks[i].has_window;
    return false;
}

bool record_states(const struct record *r, uint64_t n_clusters, struct page_state *out)
{
    if (r->facts.n_clusters != n_clusters)
        return false;
    page_state_map(out, (unsigned char *)r->header + r->facts.states_at, n_clusters);
    return true;
}
