/*
 * record.c - see record.h.
 *
 * Layout: the header, the table of blocks, and, from a page's start on, a byte per cluster (as
 * page_state.h has it). In the host's own byte order: it never leaves this machine.
 */
#include "restore/record_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/inject/inject.h"
#include "common/testhook.h"

#define MAX_BLOCKS 4096u
#define LOCK_WAIT_NS 3000000000ull /* workers at low priority take long to die on a busy host */
#define ASK_WAIT_NS 10000000000ull /* for a server that lives to let go */
#define ASKER_COMES_NS 2000000000ull
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

uint64_t record_states_at(uint32_t n_blocks)
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

int record_open_copy(struct record *r, const struct target *t, int copy,
                     bool (*is_right)(int seals, off_t bytes), struct error *e)
{
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

/* The same of what the VMM has as r->target_fd. It may put any file there at any time, so what is
 * looked at, and then opened, is our duplicate of that descriptor. */
static int open_there(struct record *r, const struct target *t,
                      bool (*is_right)(int seals, off_t bytes), struct error *e)
{
    CLEANUP_FD int copy = target_get_fd(t, r->target_fd);
    if (copy < 0)
        return error_set(e, VMSNAP_EXIT_TARGET, -copy, "can't get the record from process %d",
                         (int)t->pid);
    return record_open_copy(r, t, copy, is_right, e);
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

int record_take_lock(struct record *r, const struct target *t, bool asks, struct error *e)
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

int record_map(struct record *r, const struct target *t, struct error *e)
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

void record_write_header(struct record *r, const struct image *img, const char *path,
                         const struct blocks *blocks)
{
    struct record_facts *f = &r->facts;
    *f = (struct record_facts){.version = RECORD_VERSION,
                               .n_blocks = blocks->count,
                               .total_bytes = r->bytes,
                               .n_clusters = image_get_trailer(img)->n_clusters,
                               .states_at = record_states_at(blocks->count),
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
        to->image_offset = b->image_offset;
        to->kind = b->region.kind;
        to->has_window = b->window != NULL;
    }
}

static bool is_fresh(int seals, off_t bytes)
{
    return !(seals & F_SEAL_SEAL) && bytes == 0;
}

int record_size_and_seal(struct record *r, const struct target *t, struct error *e)
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
    r->bytes = record_states_at(blocks->count) + image_get_trailer(img)->n_clusters;
    int rc = inject_memfd(t, RECORD_NAME, &r->target_fd, timeout_ms, e);
    if (rc)
        return rc;
    rc = open_there(r, t, is_fresh, e);
    if (rc == 0)
        rc = record_size_and_seal(r, t, e);
    if (rc == 0)
        rc = record_map(r, t, e);
    if (rc == 0)
        rc = record_take_lock(r, t, false, e);
    if (rc)
        record_close(r);
    else
        record_write_header(r, img, path ? path : "", blocks);
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

bool record_is_sealed(int seals, off_t bytes)
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
           f->states_at == record_states_at(f->n_blocks) && f->states_at <= r->bytes &&
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

static int open_number(struct record *r, const struct target *t, int number, struct error *e)
{
    *r = (struct record){.lock_fd = -1, .target_fd = number};
    int rc = open_there(r, t, record_is_sealed, e);
    if (rc == 0)
        rc = learn_length(r, e);
    if (rc == 0)
        rc = record_map(r, t, e);
    if (rc == 0)
        rc = check(r, t, e);
    if (rc)
        record_close(r);
    return rc;
}

/* How much it needs somebody. */
static int need_of(const struct record *r)
{
    if (record_is_released(r))
        return 0;
    return record_is_served(r) ? 1 : 2;
}

static int refuse_none(const struct target *t, int rc, struct error *e)
{
    if (rc != -ENOENT)
        return error_set(e, VMSNAP_EXIT_TARGET, -rc, "can't look at the descriptors of process %d",
                         (int)t->pid);
    error_set(e, VMSNAP_EXIT_TARGET, 0, "process %d is not being restored by vmsnap", (int)t->pid);
    error_hint(e, "either all of its memory is in, or PID is not that of a VMM, 'vmm_pid' of what "
                  "restore told");
    return rc;
}

/* With the memory of two VMs in one process there are two: the one that needs it most. */
int record_open(struct record *r, const struct target *t, struct error *e)
{
    int number = -1, rc = 0, need = -1;
    const struct error before = *e;
    struct error ignored;
    *r = (struct record){.lock_fd = -1, .target_fd = -1};
    while (need < 2 && (number = restore_record_next(t, number)) >= 0) {
        struct record one;
        int failed = open_number(&one, t, number, rc ? &ignored : e);
        int its_need = failed ? -1 : need_of(&one);
        rc = rc ? rc : failed;
        if (its_need > need) {
            record_close(r);
            *r = one;
            need = its_need;
        } else {
            record_close(&one);
        }
    }
    if (need >= 0) {
        *e = before;
        return 0;
    }
    return rc ? rc : refuse_none(t, number, e);
}

int record_lock(struct record *r, const struct target *t, bool asks, struct error *e)
{
    int rc = record_take_lock(r, t, asks, e);
    if (rc == 0)
        rc = check(r, t, e); /* its server may have written to it since */
    if (rc == 0 && atomic_load(&r->header->stage) == RECORD_NEW)
        rc = refuse(t, "was never finished: its guest has not run", e);
    return rc;
}
