#include "restore/resume.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/kernel.h"
#include "common/log.h"
#include "common/qmp.h"
#include "common/restore_record.h"
#include "common/testhook.h"
#include "restore/launch/detach.h"
#include "restore/launch/vmm_kind.h"
#include "restore/memory/handoff.h"
#include "restore/memory/theirs.h"
#include "restore/memory/window.h"
#include "restore/serve/damage.h"
#include "restore/session.h"
#include "restore/signals.h"
#include "restore/supervised.h"

/*
 * Which image, says the record in the VMM's process. One that a listener has made is ours, and
 * nobody else can write to it (record_held.c): what only says so of itself is not believed, since
 * its VMM could name any image that we may read. Any other record the VMM itself has made, for us:
 * where that is another user than we are, it is said what is believed.
 */
static int check_recorder(const struct session *s, struct error *e)
{
    struct stat st;
    int pid = s->target->pid;
    if (fstat(s->record.lock_fd, &st))
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't look at the record");
    bool ours = st.st_uid == geteuid();
    if (record_is_theirs(&s->record) && (!ours || st.st_mode & (S_IWGRP | S_IWOTH))) {
        error_set(e, VMSNAP_EXIT_TARGET, EPERM,
                  "process %d could have written itself which image its memory is in", pid);
        error_hint(e, "name the image: vmsnap restore --resume %d IMAGE", pid);
        return -EPERM;
    }
    if (!ours)
        log_warn("that it is image %s says process %d, which runs as user %u",
                 record_image_path(&s->record), pid, (unsigned)st.st_uid);
    return 0;
}

/* The path comes out of the VMM's process: whatever lies there must not be opened before it is
 * known to be a file, since opening a device may do something. */
static int open_recorded_image(struct session *s, struct error *e)
{
    const char *path = record_image_path(&s->record);
    if (!path[0])
        return error_set(e, VMSNAP_EXIT_FAILED, 0, "the image's place is not recorded");
    int rc = check_recorder(s, e);
    if (rc)
        return rc;
    CLEANUP_FD int place = open(path, O_PATH | O_CLOEXEC);
    struct stat st;
    if (place < 0 || fstat(place, &st))
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "opening image %s", path);
    if (!S_ISREG(st.st_mode))
        return error_set(e, VMSNAP_EXIT_IMAGE, EINVAL, "%s: not a regular file", path);
    char name[32];
    snprintf(name, sizeof(name), "/proc/self/fd/%d", place);
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "opening image %s", path);
    log_info("the image is the recorded one, %s", path);
    return image_open_fd(&s->img, fd, path, e);
}

static int take_image(struct session *s, const struct resume_help *help, struct error *e)
{
    const char *given = s->o->image_path;
    bool relative = given && given[0] != '/';
    int rc = given ? image_open(&s->img, given, e) : open_recorded_image(s, e);
    if (rc) {
        if (relative && help)
            error_wrap(e, "in the directory where vmsnap was started");
        if (!given || help) {
            e->hint[0] = '\0'; /* this helps more than what opening it says */
            error_hint(e, "if the image has moved, name it: vmsnap restore --resume %d IMAGE",
                       (int)s->target->pid);
        }
        return rc;
    }
    if (memcmp(image_get_header(s->img)->image_id, record_image_id(&s->record), 16) == 0)
        return 0;
    rc = error_set(e, VMSNAP_EXIT_MISMATCH, 0,
                   "%s is not the image that process %d was started from (or a copy of it)",
                   given ? given : record_image_path(&s->record), (int)s->target->pid);
    error_hint(e,
               "'vmsnap info IMAGE' shows which snapshot an image is; its memory is in no other");
    return rc;
}

/* What is registered for minor faults is filled through the file as before. */
static int reopen_windows(struct session *s, struct error *e)
{
    int rc = 0;
    for (uint32_t i = 0; i < s->blocks.count && rc == 0; i++) {
        struct block *b = &s->blocks.items[i];
        if (!record_has_window(&s->record, b->region.hva))
            continue;
        rc = window_reopen(b, s->target);
        if (rc)
            error_set(e, VMSNAP_EXIT_TARGET, -rc,
                      "the memory of block '%s' of process %d can't be opened", b->region.name,
                      (int)s->target->pid);
    }
    return rc;
}

static int refuse_record(const struct session *s, int rc, struct error *e)
{
    error_set(e, VMSNAP_EXIT_TARGET, -rc, "the record in process %d makes no sense",
              (int)s->target->pid);
    return rc;
}

static int match_blocks(struct session *s, struct error *e)
{
    struct region *regions = NULL;
    uint32_t n = 0;
    int rc = record_regions(&s->record, &regions, &n);
    if (rc)
        return refuse_record(s, rc, e);
    rc = blocks_match(&s->blocks, s->img, regions, n, e);
    free(regions);
    return rc;
}

static int place_blocks(struct session *s, struct error *e)
{
    struct block_place *places = NULL;
    uint32_t n = 0;
    int rc = record_places(&s->record, &places, &n);
    if (rc)
        return refuse_record(s, rc, e);
    rc = blocks_place(&s->blocks, s->img, places, n, e);
    free(places);
    return rc;
}

static int take_blocks(struct session *s, struct error *e)
{
    int rc = record_is_theirs(&s->record) ? place_blocks(s, e) : match_blocks(s, e);
    if (rc == 0 && !record_states(&s->record, image_get_trailer(s->img)->n_clusters, &s->state))
        rc = error_set(e, VMSNAP_EXIT_MISMATCH, EINVAL,
                       "the record in process %d is of another number of clusters",
                       (int)s->target->pid);
    if (rc)
        return rc;
    return reopen_windows(s, e);
}

static int refuse_uffd(const struct session *s, int rc, struct error *e)
{
    return error_set(e, VMSNAP_EXIT_TARGET, -rc, "process %d has no userfaultfd any more",
                     (int)s->target->pid);
}

/* The one that the VMM has made. Two copies: one is the server's. */
static int take_theirs(struct session *s, struct error *e)
{
    int fd = theirs_find(s->target, &s->blocks);
    if (fd < 0)
        return refuse_uffd(s, fd, e);
    s->theirs = fd;
    fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    return fd < 0 ? refuse_uffd(s, -errno, e) : fd;
}

/* Our copy of the VMM's userfaultfd. */
static int take_uffd(struct session *s, struct error *e)
{
    if (record_is_theirs(&s->record))
        return take_theirs(s, e);
    bool same = false;
    s->target_fd = record_uffd(&s->record);
    int rc = target_fd_is(s->target, s->target_fd, HANDOFF_UFFD, &same);
    if (rc == 0)
        rc = same ? target_get_fd(s->target, s->target_fd) : -EBADF;
    return rc < 0 ? refuse_uffd(s, rc, e) : rc;
}

static enum guest_state guest_of(const struct session *s)
{
    if (record_is_theirs(&s->record)) /* its owner lets it run */
        return GUEST_UNKNOWN;
    return record_get_guest(&s->record) == RECORD_GUEST_LET_RUN ? GUEST_RUNNING : GUEST_PAUSED;
}

/* What can be said of a guest that another vmsnap serves: where memory is damaged it may wait. */
static enum guest_state guest_of_other(const struct session *s)
{
    struct restore_look look;
    return restore_look(s->target, &look) == 0 && look.n_damaged == 0 ? guest_of(s) : GUEST_UNKNOWN;
}

/* Killed between the VMM's being let live and its guest's being let run. */
static void warn_if_held(const struct session *s)
{
    if (record_get_guest(&s->record) == RECORD_GUEST_HELD)
        log_warn(
            "the restore of process %d died before it let the guest run, or just then: if it is "
            "paused, 'cont' over its QMP lets it run",
            (int)s->target->pid);
}

static void add_copy(json_t *to, const char *key, const json_t *from)
{
    json_t *v = json_object_get(from, key);
    if (v)
        json_object_set(to, key, v);
}

/* `word_fd`: where a caller may still wait for it (detach.h), or -1. */
static void report_running(const struct session *s, int word_fd)
{
    /* How far its clock is behind is not known: it has run since, and may have been set. */
    json_t *o =
        json_pack("{s:I, s:i, s:n, s:s, s:b}", "launch_to_running_ns", (json_int_t)s->running_ns,
                  "vmm_pid", (int)s->target->pid, "clock_behind_ns", "guest_state",
                  guest_state_name(guest_of(s)), "resumed", true);
    add_copy(o, "accelerator", s->machine); /* as recorded: a restore refuses another one */
    add_copy(o, "vm_name", s->machine);
    clock_sync_add(s->clock, o);
    if (word_fd >= 0) {
        detach_tell_running(word_fd, o);
        supervised_tell_told();
    }
    s->o->report(s->o->opaque, "running", o);
}

/* The server before us had let go of the VMM, and was killed before it could say so. */
static int tell_complete(struct session *s)
{
    s->complete_ns = clock_monotonic_ns() - s->began_ns;
    session_summarize(s);
    return 0;
}

/* All memory was in already: only the descriptors are left. */
static int clear_up(struct session *s, struct error *e)
{
    e->guest = guest_of(s);
    s->target_fd = record_uffd(&s->record);
    int rc = session_close_there(s, e);
    if (rc)
        return rc;
    warn_if_held(s);
    return tell_complete(s);
}

/*
 * The server before us may have died at any point of `cont`, or just before. Nobody else has had
 * the connection since. What went wrong is said, and the guest stays as it is.
 */
static void let_run(struct session *s, const struct resume_help *help)
{
    struct error e = {.guest = GUEST_PAUSED};
    struct qmp *q = NULL;
    if (help->command_fd < 0)
        return;
    int rc = qmp_take_over(&q, help->command_fd, s->o->timeout_ms, &e);
    if (rc == 0)
        rc = vmm_kind_of(s->machine)->resume(q, s->o->timeout_ms, &e);
    if (rc == 0) {
        record_set_guest(&s->record, RECORD_GUEST_LET_RUN);
        supervised_tell_runs();
    } else {
        error_wrap(&e, "the guest could not be let run");
        s->o->trouble(s->o->opaque, &e);
    }
    qmp_close(q);
}

static int take_over(struct session *s, const struct resume_help *help, struct error *e)
{
    int rc = take_blocks(s, e);
    if (rc)
        return rc;
    int uffd = take_uffd(s, e);
    if (uffd < 0)
        return uffd;
    TESTHOOK_POINT("resume-taken");
    signals_outlive();
    session_plan_prefetch(s, 0);
    rc = session_serve(s, uffd, true, e);
    if (rc)
        return rc;
    s->running_ns = clock_monotonic_ns() - s->began_ns;
    supervised_tell_serves(session_count_settled(s));
    TESTHOOK_POINT("resume-serving");
    if (help)
        let_run(s, help);
    warn_if_held(s);
    if (s->o->learn && help && !help->learned)
        log_warn("what --learn recorded is lost with the server that did it; the working set of an "
                 "earlier run, if there is one, stays");
    if (s->o->sync_clock) {
        s->clock = clock_sync_inherit(help ? help->clock : NULL);
        s->clock_reported = true;
    }
    report_running(s, help ? help->word_fd : -1);
    session_accompany(s);
    if (s->handed_over)
        e->guest = guest_of(s);
    return session_explain_end(s, e);
}

/* The image is opened, which may hang or fail, before the lock is taken, or asked for. */
static int go_on(struct session *s, const struct resume_help *help, struct error *e)
{
    bool asks = s->o->image_path && !help;
    int rc = record_is_released(&s->record) ? 0 : take_image(s, help, e);
    if (rc == 0)
        rc = record_lock(&s->record, s->target, asks, e);
    else if (help && record_is_served(&s->record)) /* by one that has another copy of it */
        rc = error_set(e, VMSNAP_EXIT_BUSY, 0, "process %d is served by another vmsnap already",
                       (int)s->target->pid);
    if (rc) {
        if (record_is_served(&s->record))
            e->guest = guest_of_other(s);
        return rc;
    }
    if (record_is_released(&s->record))
        return clear_up(s, e);
    json_t *description = json_loads(image_description(s->img), 0, NULL);
    s->machine = description;
    rc = take_over(s, help, e);
    s->machine = NULL;
    json_decref(description);
    return rc;
}

int resume_run(const struct restore_options *o, pid_t pid, const struct resume_help *help,
               struct error *e)
{
    struct target target;
    struct session s = {.o = o, .target = &target, .began_ns = clock_monotonic_ns()};
    s.shows_progress = o->progress && !(help && help->on_terminal);
    int rc = kernel_require(e);
    if (rc == 0)
        rc = damage_check_kernel(o->poison_damage, e);
    if (rc == 0)
        rc = target_open(&target, pid, e);
    if (rc) {
        if (e->err == ESRCH)
            error_hint(
                e, "PID is the VMM's, 'vmm_pid' of what restore printed; if it has ended, start "
                   "its guest from the image again");
        return rc;
    }
    rc = record_open(&s.record, &target, e);
    if (rc == 0)
        e->guest = GUEST_WAITING;
    struct restore_look look;
    if (rc == -ENOENT && help && restore_look(&target, &look) == 0) /* it is not just ending */
        rc = tell_complete(&s);
    else if (rc == 0)
        rc = go_on(&s, help, e);
    session_close(&s);
    target_close(&target);
    return rc;
}
