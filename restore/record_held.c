/*
 * record_held.c - a record that a supervisor holds for all servers of a guest (record.h).
 *
 * It is made here, not in the VMM, so that the first fault need not wait for an injection; and a
 * VMM all of whose threads wait for memory can't take one before it is served. What --resume by
 * hand needs is left in the VMM by a thread of its own while faults are answered already: usually
 * within a millisecond.
 *
 * It is ours alone, and the VMM is given an opening for reading: one that runs as another user
 * can't write to it, so that what it says of the image is what we wrote.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/futex.h"
#include "common/inject/inject.h"
#include "common/log.h"
#include "common/testhook.h"
#include "common/thread.h"
#include "restore/record_internal.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u /* Linux 6.3 */
#endif

#define TRY_MS 300    /* one try; who ends the leaving waits so long at most */
#define WORRY_MS 3000 /* then it is said */
#define FIRST_PAUSE_MS 5
#define MAX_PAUSE_MS 1000

int record_hold(int *fd, const struct target *t, const struct image *img, uint32_t n_blocks,
                struct error *e)
{
    struct record r = {.lock_fd = -1,
                       .bytes = record_states_at(n_blocks) + image_get_trailer(img)->n_clusters};
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    CLEANUP_FD int made = memfd_create(RECORD_NAME, flags | MFD_NOEXEC_SEAL);
    if (made < 0 && errno == EINVAL)
        made = memfd_create(RECORD_NAME, flags);
    if (made < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't make the record of the restore");
    if (fchmod(made, S_IRUSR | S_IWUSR))
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't make the record of the restore");
    r.lock_fd = made;
    int rc = record_size_and_seal(&r, t, e);
    if (rc == 0)
        *fd = take_fd(&made);
    return rc;
}

int record_enter(struct record *r, int fd, const struct target *t, const struct image *img,
                 const char *image_path, const struct blocks *blocks, struct error *e)
{
    *r = (struct record){.lock_fd = -1,
                         .target_fd = -1,
                         .bytes =
                             record_states_at(blocks->count) + image_get_trailer(img)->n_clusters};
    int rc = record_open_copy(r, t, fd, record_is_sealed, e);
    if (rc == 0)
        rc = record_map(r, t, e);
    if (rc == 0)
        rc = record_take_lock(r, t, false, e);
    if (rc) {
        record_close(r);
        return rc;
    }
    record_write_header(r, img, image_path, blocks);
    r->header->facts.is_theirs = r->facts.is_theirs = true;
    return 0;
}

bool record_is_new(const struct record *r)
{
    return atomic_load(&r->header->stage) == RECORD_NEW;
}

/* ---- leaving it in the VMM ---- */

struct record_leaving {
    const struct target *target;
    int fd; /* reads only */
    pthread_t thread;
    atomic_int there; /* its number in the VMM; -1: not yet */
    atomic_uint stop;
};

/* The VMM's number of the same file as `fd`, or -1. A server before us may have left it, or a try
 * that did not end well. */
static int find_there(const struct target *t, int fd)
{
    struct stat ours, theirs;
    int number = -1;
    while (fstat(fd, &ours) == 0 && (number = restore_record_next(t, number)) >= 0) {
        CLEANUP_FD int copy = target_get_fd(t, number);
        if (copy >= 0 && fstat(copy, &theirs) == 0 && ours.st_dev == theirs.st_dev &&
            ours.st_ino == theirs.st_ino)
            return number;
    }
    return -1;
}

int record_find_there(const struct record *r, const struct target *t)
{
    return find_there(t, r->lock_fd);
}

static void say_once(const struct record_leaving *l, bool *said, const struct error *why)
{
    if (*said)
        return;
    *said = true;
    log_warn("nothing can be left in process %d for a takeover by hand, which is tried again (%s): "
             "if all of vmsnap is killed at once before, its guest waits for ever",
             (int)l->target->pid, why->message);
}

/* Tries until it is there, or the VMM has ended. */
static void *leave(void *opaque)
{
    struct record_leaving *l = opaque;
    uint64_t worry_ns = clock_monotonic_ns() + WORRY_MS * 1000000ull;
    unsigned pause_ms = FIRST_PAUSE_MS;
    bool said = false;
    int number;
    while ((number = find_there(l->target, l->fd)) < 0 && !atomic_load(&l->stop)) {
        struct error why = {0};
        int rc = inject_give_fd(l->target, l->fd, &number, TRY_MS, &why);
        if (rc == 0 || rc == -ESRCH)
            break;
        number = -1;
        bool passes = rc == -ETIMEDOUT || rc == -EBUSY; /* another server of that VMM, for one */
        if (!passes || clock_monotonic_ns() >= worry_ns)
            say_once(l, &said, &why);
        futex_wait(&l->stop, 0, pause_ms);
        pause_ms = pause_ms * 2 < MAX_PAUSE_MS ? pause_ms * 2 : MAX_PAUSE_MS;
    }
    atomic_store(&l->there, number);
    if (number >= 0)
        TESTHOOK_POINT("listen-left");
    return NULL;
}

static int open_for_reading(int fd)
{
    char name[32];
    snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
    int reading = open(name, O_RDONLY | O_CLOEXEC);
    return reading < 0 ? -errno : reading;
}

int record_leave(struct record_leaving **out, const struct target *t, int fd, struct error *e)
{
    CLEANUP_FD int reading = open_for_reading(fd);
    if (reading < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, -reading, "can't open the record");
    struct record_leaving *l = calloc(1, sizeof(*l));
    if (!l)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "no memory");
    *l = (struct record_leaving){.target = t, .fd = reading, .there = -1};
    int rc = thread_start(&l->thread, leave, l);
    if (rc) {
        free(l);
        return error_set(e, VMSNAP_EXIT_FAILED, -rc, "can't start a thread");
    }
    (void)take_fd(&reading);
    *out = l;
    return 0;
}

int record_end_leaving(struct record_leaving *l)
{
    atomic_store(&l->stop, 1);
    futex_wake(&l->stop, 1);
    pthread_join(l->thread, NULL);
    int there = atomic_load(&l->there);
    close(l->fd);
    free(l);
    return there;
}
