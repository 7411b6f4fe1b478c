/*
 * The pause of a QEMU guest: what source/control_pause.c leaves to do. What is needed of QEMU but
 * not of the instant (a descriptor for the state) is done before `stop` or after `cont`.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/testhook.h"
#include "snapshot/source/qemu.h"

/* Gives QEMU a descriptor for its device state, ahead of the pause. QEMU takes from a set only a
 * descriptor of the access mode that it wants to open: for writing alone. */
static int offer_state_fd(struct source_qemu *s, struct error *e)
{
    CLEANUP_FD int write_fd = -1;
    int r = source_control_make_state_fd(&s->c, &write_fd, e);
    if (r < 0)
        return r;
    json_t *result = NULL;
    r = qmp_command(s->c.q, "add-fd", json_pack("{s:s}", "opaque", "vmsnap device state"), write_fd,
                    s->c.base.timeout_ms, &result, e);
    const json_t *id = json_object_get(result, "fdset-id");
    if (r == 0 && json_is_integer(id))
        s->state_fdset = json_integer_value(id);
    else if (r == 0)
        r = error_set(e, VMSNAP_EXIT_TARGET, EPROTO,
                      "QMP command add-fd: no fdset-id in the answer");
    json_decref(result);
    return r;
}

/* Takes it back. QEMU 7.2 closes a removed descriptor only while the VM runs: that of a paused VM
 * stays until it runs and a monitor client goes. It is emptied, so that no memory stays with it. */
static int withdraw_state_fd(struct source_qemu *s, struct error *e)
{
    source_control_drop_state(&s->c);
    if (s->state_fdset < 0)
        return 0;
    json_t *args = json_pack("{s:I}", "fdset-id", (json_int_t)s->state_fdset);
    s->state_fdset = -1;
    return qmp_command(s->c.q, "remove-fd", args, -1, s->c.base.timeout_ms, NULL, e);
}

/* The blocks must be at the instant what they were when they were looked up: a device plugged or a
 * reset in between adds, removes or resizes them. */
static int check_blocks(struct source_qemu *s, struct error *e)
{
    CLEANUP_FREE char *text = NULL;
    int r = qmp_hmp(s->c.q, "info ramblock", s->c.base.timeout_ms, &text, e);
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

/* On failure after `stop` was sent the VM may be stopped: the caller calls resume. */
int source_qemu_pause(struct source *base, bool *was_running, struct error *e)
{
    struct source_qemu *s = source_qemu_of(base);
    int r = offer_state_fd(s, e);
    if (r == 0)
        r = source_control_stop(&s->c, was_running, e);
    return r < 0 ? r : check_blocks(s, e);
}

/* QEMU's stream starts with "QEVM" and version 3 (migration/savevm.c). */
static int read_state(struct source_qemu *s, void **buf, size_t *len, struct error *e)
{
    static const unsigned char magic[8] = {'Q', 'E', 'V', 'M', 0, 0, 0, 3};
    CLEANUP_FREE void *state = NULL;
    int r = source_control_read_state(&s->c, &state, len, e);
    if (r < 0)
        return r;
    if (*len < 2 * sizeof(magic) || memcmp(state, magic, sizeof(magic)) != 0)
        return error_set(e, VMSNAP_EXIT_VMM, EPROTO,
                         "the device state does not begin as one of QEMU's (QEVM, version 3)");
    *buf = take_ptr(&state);
    return 0;
}

int source_qemu_save_state(struct source *base, void **buf, size_t *len, struct error *e)
{
    struct source_qemu *s = source_qemu_of(base);
    char name[64];
    snprintf(name, sizeof(name), "/dev/fdset/%lld", (long long)s->state_fdset);
    /* live:true would inactivate the disks of a VM that was paused before. */
    json_t *args = json_pack("{s:s, s:b}", "filename", name, "live", 0);
    int r = qmp_command(s->c.q, "xen-save-devices-state", args, -1, base->timeout_ms, NULL, e);
    if (r == 0)
        r = read_state(s, buf, len, e);
    s->state_saved = r == 0;
    TESTHOOK_POINT("source-after-state");
    if (r < 0)
        error_wrap(e, "saving the device state");
    return r;
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
    int r = source_qemu_list_plugged(s->c.q, s->c.base.timeout_ms, &now, e);
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
    int r = source_control_continue(&s->c, e);
    if (r < 0)
        return r;
    struct error ignored;
    if (withdraw_state_fd(s, &ignored) < 0)
        log_debug("QEMU keeps the descriptor of the device state until we disconnect");
    return check_plugged(s, e);
}
