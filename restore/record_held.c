/* record_held.c - a record that a supervisor holds for all servers of a guest (record.h). */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/inject.h"
#include "common/log.h"
#include "restore/record_internal.h"

static int make_here(void)
{
    int fd = memfd_create(RECORD_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    return fd < 0 ? -errno : fd;
}

/* Our copy of one made in the VMM, whose number there is *target_fd; -1: it can't be had. */
static int make_there(int *target_fd, const struct target *t, int timeout_ms)
{
    struct error why = {0};
    int rc = inject_memfd(t, RECORD_NAME, target_fd, timeout_ms, &why);
    if (rc == 0) {
        rc = target_get_fd(t, *target_fd);
        if (rc >= 0)
            return rc;
        error_set(&why, VMSNAP_EXIT_TARGET, -rc, "can't get what was made there");
    }
    log_warn("nothing can be left in process %d for a takeover by hand (%s): if all of vmsnap is "
             "killed at once, its guest waits for ever",
             (int)t->pid, why.message);
    *target_fd = -1;
    return -1;
}

int record_lay(int *fd, int *target_fd, const struct target *t, const struct image *img,
               uint32_t n_blocks, int timeout_ms, struct error *e)
{
    struct record r = {.lock_fd = -1,
                       .bytes = record_states_at(n_blocks) + image_get_trailer(img)->n_clusters};
    CLEANUP_FD int made = make_there(target_fd, t, timeout_ms);
    if (made < 0)
        made = make_here();
    if (made < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, -made, "can't make the record of the restore");
    int rc = record_open_copy(&r, t, made, record_is_fresh, e);
    if (rc == 0)
        rc = record_size_and_seal(&r, t, e);
    *fd = r.lock_fd;
    if (rc && *fd >= 0)
        close(*fd);
    return rc;
}

int record_enter(struct record *r, int fd, int target_fd, const struct target *t,
                 const struct image *img, const char *image_path, const struct blocks *blocks,
                 struct error *e)
{
    *r = (struct record){.lock_fd = -1,
                         .target_fd = target_fd,
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
