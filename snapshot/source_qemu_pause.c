/*
 * The pause of a QEMU guest.
 *
 * `stop` halts the vCPUs, sends the STOP event, then drains and flushes all disks, and only then
 * answers: the pause as QEMU's stamps have it begins at the event and includes the flush. `cont`
 * sends RESUME just before the vCPUs start. What is needed of QEMU but not of the instant (a
 * descriptor for the state) is done before `stop` or after `cont`.
 *
 * From before `stop` is sent until `cont` has been answered, shared->stopped_by_us tells the
 * guardian to resume the VM if we die. QEMU takes the commands of one connection in order, so the
 * guardian's own query-status on it sees the outcome of everything that we had sent.
 */
#include "snapshot/source_qemu.h"

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

/* How long at least a guest that we may have paused is waited for, whatever --timeout says: QEMU
 * drops commands that it has not begun when their connection closes, so leaving early leaves it
 * paused. */
#define RESUME_PATIENCE_MS 60000
#define STATE_MAX_BYTES (1ll << 30)

int source_qemu_offer_state_fd(struct source_qemu *s, struct error *e)
{
    char path[64];
    s->state_fd = memfd_create("vmsnap-device-state", MFD_CLOEXEC);
    if (s->state_fd < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "cannot make a memfd for the device state");
    /* QEMU takes from a set only a descriptor of the access mode that it wants to open. */
    snprintf(path, sizeof(path), "/proc/self/fd/%d", s->state_fd);
    CLEANUP_FD int write_fd = open(path, O_WRONLY | O_CLOEXEC);
    if (write_fd < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "cannot open the memfd again");
    json_t *result = NULL;
    int r = qmp_command(s->q, "add-fd", json_pack("{s:s}", "opaque", "vmsnap device state"),
                        write_fd, s->base.timeout_ms, &result, e);
    const json_t *id = json_object_get(result, "fdset-id");
    if (r == 0 && json_is_integer(id))
        s->state_fdset = json_integer_value(id);
    else if (r == 0)
        r = error_set(e, VMSNAP_EXIT_TARGET, EPROTO,
                      "QMP command add-fd: no fdset-id in the answer");
    json_decref(result);
    return r;
}

/* QEMU 7.2 closes a removed descriptor only while the VM runs: that of a paused VM stays until it
 * runs and a monitor client goes. It is emptied, so that no memory stays with it. */
int source_qemu_withdraw_state_fd(struct source_qemu *s, struct error *e)
{
    if (s->state_fd >= 0) {
        if (ftruncate(s->state_fd, 0) < 0)
            log_debug("cannot empty the device state's memfd: %s", strerror(errno));
        close(s->state_fd);
    }
    s->state_fd = -1;
    if (s->state_fdset < 0)
        return 0;
    json_t *args = json_pack("{s:I}", "fdset-id", (json_int_t)s->state_fdset);
    s->state_fdset = -1;
    return qmp_command(s->q, "remove-fd", args, -1, s->base.timeout_ms, NULL, e);
}

/* Forgets events of that name that came earlier, so that the next one is about our command. */
static void forget_events(struct qmp *q, const char *name)
{
    struct qmp_event ev;
    while (qmp_wait_event(q, name, 0, &ev, NULL) == 0)
        qmp_event_clear(&ev);
}

/* The blocks must be at the instant what they were when they were looked up: a device plugged or a
 * reset in between adds, removes or resizes them. */
static int check_blocks(struct source_qemu *s, struct error *e)
{
    CLEANUP_FREE char *text = NULL;
    int r = qmp_hmp(s->q, "info ramblock", s->base.timeout_ms, &text, e);
    if (r < 0)
        return r;
    if (strcmp(text, s->blocks_text) == 0)
        return 0;
    error_set(e, VMSNAP_EXIT_TARGET, EAGAIN,
              "the VM's memory blocks changed while the snapshot was being prepared (a device was "
              "plugged, or the guest was reset)");
    error_hint(e, "try again");
    return -EAGAIN;
}

static int stop_vm(struct source_qemu *s, struct error *e)
{
    forget_events(s->q, "STOP");
    atomic_store(&s->shared->stopped_by_us, true);
    TESTHOOK_POINT("source-before-stop");
    s->stop_sent_ns = clock_monotonic_ns();
    int r = qmp_command(s->q, "stop", NULL, -1, s->base.timeout_ms, NULL, e);
    if (r < 0)
        return r;
    s->stopped_ns = clock_monotonic_ns();
    TESTHOOK_POINT("source-after-stop");
    struct qmp_event ev;
    r = qmp_wait_event(s->q, "STOP", s->base.timeout_ms, &ev, e);
    if (r < 0)
        return r;
    s->stop_event_us = ev.time_us;
    qmp_event_clear(&ev);
    /* The guest may have run into an I/O error or panic just before: then this is not our pause. */
    char status[VM_STATUS_BYTES];
    r = vm_status_get(s->q, s->base.timeout_ms, status, e);
    if (r == 0 && strcmp(status, "paused") != 0)
        r = error_set(e, VMSNAP_EXIT_TARGET, EBUSY, "the VM is in state \"%s\" after stop", status);
    return r;
}

/* On failure after `stop` was sent the VM may be stopped: the caller calls resume. */
int source_qemu_pause(struct source *base, bool *was_running, struct error *e)
{
    struct source_qemu *s = source_qemu_of(base);
    char status[VM_STATUS_BYTES];
    int r = source_qemu_offer_state_fd(s, e);
    if (r == 0)
        r = disk_sync_run(&s->disk_sync, base->timeout_ms, e);
    disk_sync_stop(&s->disk_sync); /* its copies of QEMU's descriptors hold QEMU's file locks */
    if (r == 0)
        r = vm_status_get(s->q, base->timeout_ms, status, e);
    if (r < 0)
        return r;
    *was_running = strcmp(status, "running") == 0;
    if (*was_running)
        r = stop_vm(s, e);
    else if (strcmp(status, "paused") != 0 && strcmp(status, "prelaunch") != 0)
        r = error_set(e, VMSNAP_EXIT_TARGET, EBUSY, "the VM went into state \"%s\"", status);
    return r < 0 ? r : check_blocks(s, e);
}

/* Reads the memfd. QEMU's stream starts with "QEVM" and version 3 (migration/savevm.c). */
static int read_state(int fd, void **buf, size_t *len, struct error *e)
{
    static const unsigned char magic[8] = {'Q', 'E', 'V', 'M', 0, 0, 0, 3};
    struct stat st;
    if (fstat(fd, &st) < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "cannot size the device state");
    if (st.st_size < 16 || st.st_size > STATE_MAX_BYTES)
        return error_set(e, VMSNAP_EXIT_VMM, EPROTO, "the device state has %lld bytes",
                         (long long)st.st_size);
    CLEANUP_FREE unsigned char *bytes = malloc((size_t)st.st_size);
    if (!bytes)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot keep the device state");
    for (off_t at = 0; at < st.st_size;) {
        ssize_t n = pread(fd, bytes + at, (size_t)(st.st_size - at), at);
        if (n <= 0)
            return error_set(e, VMSNAP_EXIT_FAILED, n < 0 ? errno : EIO,
                             "cannot read the device state");
        at += n;
    }
    if (memcmp(bytes, magic, sizeof(magic)) != 0)
        return error_set(e, VMSNAP_EXIT_VMM, EPROTO,
                         "the device state does not begin as one of QEMU's (QEVM, version 3)");
    *buf = take_ptr(&bytes);
    *len = (size_t)st.st_size;
    return 0;
}

int source_qemu_save_state(struct source *base, void **buf, size_t *len, struct error *e)
{
    struct source_qemu *s = source_qemu_of(base);
    char name[64];
    snprintf(name, sizeof(name), "/dev/fdset/%lld", (long long)s->state_fdset);
    /* live:true would inactivate the disks of a VM that was paused before. */
    json_t *args = json_pack("{s:s, s:b}", "filename", name, "live", 0);
    int r = qmp_command(s->q, "xen-save-devices-state", args, -1, base->timeout_ms, NULL, e);
    if (r == 0)
        r = read_state(s->state_fd, buf, len, e);
    s->state_saved = r == 0;
    TESTHOOK_POINT("source-after-state");
    if (r < 0)
        error_wrap(e, "saving the device state");
    return r;
}

static int cont_vm(struct source_qemu *s, struct error *e)
{
    forget_events(s->q, "RESUME");
    TESTHOOK_POINT("source-before-cont");
    s->cont_sent_ns = clock_monotonic_ns();
    int r = qmp_command(s->q, "cont", NULL, -1, s->base.timeout_ms, NULL, e);
    if (r < 0) {
        error_wrap(e, "resuming the guest");
        error_hint(e, "the guest may be paused: look with query-status and send cont to the VM");
        return r;
    }
    s->running_ns = clock_monotonic_ns();
    atomic_store(&s->shared->stopped_by_us, false);
    TESTHOOK_POINT("source-after-cont");
    struct qmp_event ev;
    s->resume_event_us = -1;
    if (qmp_wait_event(s->q, "RESUME", 0, &ev, NULL) == 0) { /* sent before the answer */
        s->resume_event_us = ev.time_us;
        qmp_event_clear(&ev);
    }
    return 0;
}

/*
 * The device state may hold a device that the description lacks, or the other way about, if one was
 * plugged or unplugged in between. Found out after the pause, to keep that short: what is plugged
 * now is what was described, so nothing changed at the instant either.
 */
static int check_plugged(struct source_qemu *s, struct error *e)
{
    json_t *now = NULL;
    if (!s->state_saved || !s->plugged)
        return 0;
    s->state_saved = false;
    int r = source_qemu_list_plugged(s->q, s->base.timeout_ms, &now, e);
    if (r == 0 && !json_equal(now, s->plugged)) {
        error_set(e, VMSNAP_EXIT_FAILED, 0,
                  "a device was plugged or unplugged while the snapshot was being taken");
        error_hint(e, "try again");
        r = -EAGAIN;
    }
    json_decref(now);
    return r;
}

int source_qemu_resume(struct source *base, struct error *e)
{
    struct source_qemu *s = source_qemu_of(base);
    if (atomic_load(&s->shared->stopped_by_us)) {
        int r = cont_vm(s, e);
        if (r < 0)
            return r;
    }
    struct error ignored;
    if (source_qemu_withdraw_state_fd(s, &ignored) < 0)
        log_debug("QEMU keeps the descriptor of the device state until we disconnect");
    return check_plugged(s, e);
}

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

int source_qemu_resume_after_death(struct source *base, struct error *e)
{
    struct source_qemu *s = source_qemu_of(base);
    if (!atomic_load(&s->shared->stopped_by_us))
        return 1;
    struct qmp *q = NULL;
    int patience_ms = base->timeout_ms > RESUME_PATIENCE_MS ? base->timeout_ms : RESUME_PATIENCE_MS;
    uint64_t deadline_ns = clock_monotonic_ns() + (uint64_t)patience_ms * 1000000u;
    CLEANUP_FD int fd = fcntl(qmp_fd(s->q), F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "cannot take the QMP connection over");
    int r = qmp_take_over(&q, fd, patience_ms, e);
    if (r < 0)
        return r;
    take_fd(&fd);
    r = make_run(q, deadline_ns, e);
    qmp_close(q);
    if (r == 0)
        atomic_store(&s->shared->stopped_by_us, false);
    else
        error_wrap(e, "resuming the guest after vmsnap's death");
    return r;
}

void source_qemu_pause_times(const struct source *base, struct pause_times *times)
{
    const struct source_qemu *s = (const struct source_qemu *)base;
    if (s->stop_sent_ns == 0 || s->running_ns == 0)
        return; /* it was not running */
    times->stop_ns = s->stopped_ns - s->stop_sent_ns;
    times->cont_ns = s->running_ns - s->cont_sent_ns;
    times->pause_ns = s->running_ns - s->stop_sent_ns;
    /* QEMU stamps with the real-time clock: not to be believed if that was set meanwhile. */
    int64_t stamped_us = s->resume_event_us - s->stop_event_us;
    if (s->stop_event_us >= 0 && s->resume_event_us >= 0 && stamped_us >= 0 &&
        (uint64_t)stamped_us * 1000u <= times->pause_ns)
        times->pause_ns = (uint64_t)stamped_us * 1000u;
}
