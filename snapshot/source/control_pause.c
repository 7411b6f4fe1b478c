/*
 * The pause of a VM with a control socket.
 *
 * `stop` halts the vCPUs, sends the STOP event, then drains I/O (QEMU flushes all disks), and only
 * then answers: the pause as the VMM's stamps have it begins at the event and includes the flush.
 * `cont` sends RESUME just before the vCPUs start.
 *
 * From before `stop` is sent until `cont` has been answered, shared->stopped_by_us tells the
 * guardian to resume the VM if we die. A VMM takes the commands of one connection in order, so the
 * guardian's own query-status on it sees the outcome of everything that we had sent.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/testhook.h"
#include "common/vm_status.h"
#include "snapshot/source/control.h"

/* How long at least a guest that we may have paused is waited for, whatever --timeout says: QEMU
 * drops commands that it has not begun when their connection closes, so leaving early leaves it
 * paused. */
#define RESUME_PATIENCE_MS 60000
#define STATE_MAX_BYTES (1ll << 30)

/* Forgets events of that name that came earlier, so that the next one is about our command. */
static void forget_events(struct qmp *q, const char *name)
{
    struct qmp_event ev;
    while (qmp_wait_event(q, name, 0, &ev, NULL) == 0)
        qmp_event_clear(&ev);
}

static int stop_vm(struct source_control *c, struct error *e)
{
    forget_events(c->q, "STOP");
    atomic_store(&c->shared->stopped_by_us, true);
    TESTHOOK_POINT("source-before-stop");
    c->stop_sent_ns = clock_monotonic_ns();
    int r = qmp_command(c->q, "stop", NULL, -1, c->base.timeout_ms, NULL, e);
    if (r < 0)
        return r;
    c->stopped_ns = clock_monotonic_ns();
    TESTHOOK_POINT("source-after-stop");
    struct qmp_event ev;
    r = qmp_wait_event(c->q, "STOP", c->base.timeout_ms, &ev, e);
    if (r < 0)
        return r;
    c->stop_event_us = ev.time_us;
    qmp_event_clear(&ev);
    /* The guest may have run into an I/O error or panic just before: then this is not our pause. */
    char status[VM_STATUS_BYTES];
    r = vm_status_get(c->q, c->base.timeout_ms, status, e);
    if (r == 0 && strcmp(status, "paused") != 0)
        r = error_set(e, VMSNAP_EXIT_TARGET, EBUSY, "the VM is in state \"%s\" after stop", status);
    return r;
}

int source_control_prepare_pause(struct source *s, int (*tick)(void *opaque), void *opaque,
                                 struct error *e)
{
    struct source_control *c = source_control_of(s);
    int r = disk_sync_run(&c->disk_sync, s->timeout_ms, tick, opaque, e);
    disk_sync_stop(&c->disk_sync); /* its copies of the VMM's descriptors hold its file locks */
    return r;
}

int source_control_stop(struct source_control *c, bool *was_running, struct error *e)
{
    char status[VM_STATUS_BYTES];
    int r = vm_status_get(c->q, c->base.timeout_ms, status, e);
    if (r < 0)
        return r;
    *was_running = strcmp(status, "running") == 0;
    if (*was_running)
        return stop_vm(c, e);
    if (strcmp(status, "paused") != 0 && strcmp(status, "prelaunch") != 0)
        return error_set(e, VMSNAP_EXIT_TARGET, EBUSY, "the VM went into state \"%s\"", status);
    return 0;
}

static int cont_vm(struct source_control *c, struct error *e)
{
    forget_events(c->q, "RESUME");
    TESTHOOK_POINT("source-before-cont");
    c->cont_sent_ns = clock_monotonic_ns();
    int r = qmp_command(c->q, "cont", NULL, -1, c->base.timeout_ms, NULL, e);
    if (r < 0) {
        error_wrap(e, "resuming the guest");
        if (e)
            e->hint[0] = '\0'; /* this comes first */
        error_hint(e, "the guest may be paused: look with query-status and send cont to the VM");
        return r;
    }
    c->running_ns = clock_monotonic_ns();
    atomic_store(&c->shared->stopped_by_us, false);
    TESTHOOK_POINT("source-after-cont");
    struct qmp_event ev;
    c->resume_event_us = -1;
    if (qmp_wait_event(c->q, "RESUME", 0, &ev, NULL) == 0) { /* sent before the answer */
        c->resume_event_us = ev.time_us;
        qmp_event_clear(&ev);
    }
    return 0;
}

int source_control_continue(struct source_control *c, struct error *e)
{
    return atomic_load(&c->shared->stopped_by_us) ? cont_vm(c, e) : 0;
}

/* ---- the device state ---- */

int source_control_make_state_fd(struct source_control *c, int *write_fd, struct error *e)
{
    char path[64];
    c->state_fd = memfd_create("vmsnap-device-state", MFD_CLOEXEC);
    if (c->state_fd < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "cannot make a memfd for the device state");
    snprintf(path, sizeof(path), "/proc/self/fd/%d", c->state_fd);
    *write_fd = open(path, O_WRONLY | O_CLOEXEC);
    if (*write_fd < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "cannot open the memfd again");
    return 0;
}

int source_control_read_state(struct source_control *c, void **buf, size_t *len, struct error *e)
{
    struct stat st;
    if (fstat(c->state_fd, &st) < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "cannot size the device state");
    if (st.st_size < 1 || st.st_size > STATE_MAX_BYTES)
        return error_set(e, VMSNAP_EXIT_VMM, EPROTO, "the device state has %lld bytes",
                         (long long)st.st_size);
    CLEANUP_FREE unsigned char *bytes = malloc((size_t)st.st_size);
    if (!bytes)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot keep the device state");
    for (off_t at = 0; at < st.st_size;) {
        ssize_t n = pread(c->state_fd, bytes + at, (size_t)(st.st_size - at), at);
        if (n <= 0)
            return error_set(e, VMSNAP_EXIT_FAILED, n < 0 ? errno : EIO,
                             "cannot read the device state");
        at += n;
    }
    *buf = take_ptr(&bytes);
    *len = (size_t)st.st_size;
    return 0;
}

void source_control_drop_state(struct source_control *c)
{
    if (c->state_fd < 0)
        return;
    if (ftruncate(c->state_fd, 0) < 0)
        log_debug("cannot empty the device state's memfd: %s", strerror(errno));
    close(c->state_fd);
    c->state_fd = -1;
}

/* ---- after the worker's death ---- */

/* Continues the VM if it is paused, and makes sure that it runs. */
static int make_run(struct qmp *q, uint64_t deadline_ns, struct error *e)
{
    char status[VM_STATUS_BYTES];
    int r = vm_status_get(q, clock_ms_until(deadline_ns), status, e);
    if (r == 0 && strcmp(status, "paused") == 0) {
        r = qmp_command(q, "cont", NULL, -1, clock_ms_until(deadline_ns), NULL, e);
        if (r == 0)
            r = vm_status_get(q, clock_ms_until(deadline_ns), status, e);
    }
    if (r == 0 && strcmp(status, "running") != 0)
        r = error_set(e, VMSNAP_EXIT_FAILED, EBUSY, "the VM is in state \"%s\"", status);
    return r;
}

int source_control_resume_after_death(struct source *base, struct error *e)
{
    struct source_control *c = source_control_of(base);
    if (!atomic_load(&c->shared->stopped_by_us))
        return 1;
    struct qmp *q = NULL;
    int patience_ms = base->timeout_ms > RESUME_PATIENCE_MS ? base->timeout_ms : RESUME_PATIENCE_MS;
    uint64_t deadline_ns = clock_monotonic_ns() + (uint64_t)patience_ms * 1000000u;
    CLEANUP_FD int fd = fcntl(qmp_fd(c->q), F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "cannot take the QMP connection over");
    int r = qmp_take_over(&q, fd, patience_ms, e);
    if (r < 0)
        return r;
    take_fd(&fd);
    r = make_run(q, deadline_ns, e);
    qmp_close(q);
    if (r == 0)
        atomic_store(&c->shared->stopped_by_us, false);
    else
        error_wrap(e, "resuming the guest after vmsnap's death");
    return r;
}

void source_control_pause_times(const struct source *base, struct pause_times *times)
{
    const struct source_control *c = (const struct source_control *)base;
    if (c->stop_sent_ns == 0 || c->running_ns == 0)
        return; /* it was not running */
    times->stop_ns = c->stopped_ns - c->stop_sent_ns;
    times->cont_ns = c->running_ns - c->cont_sent_ns;
    times->pause_ns = c->running_ns - c->stop_sent_ns;
    /* The stamps are of the real-time clock: not to be believed if that was set meanwhile. */
    int64_t stamped_us = c->resume_event_us - c->stop_event_us;
    if (c->stop_event_us >= 0 && c->resume_event_us >= 0 && stamped_us >= 0 &&
        (uint64_t)stamped_us * 1000u <= times->pause_ns)
        times->pause_ns = (uint64_t)stamped_us * 1000u;
}
