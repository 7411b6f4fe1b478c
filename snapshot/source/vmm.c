/*
 * A VMM of somebody's own as a source, over the control protocol of docs/vmm.md. Opened before the
 * engine forks, as QEMU's (source/qemu.c).
 */
#include <errno.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "common/testhook.h"
#include "common/vm_status.h"
#include "common/vmm/vmm_control.h"
#include "snapshot/source/control.h"

struct source_vmm {
    struct source_control c; /* first */
    json_t *vm;              /* query-vm as it was: nothing may have changed at the instant */
};

static struct source_vmm *source_vmm_of(struct source *s)
{
    return (struct source_vmm *)s;
}

static int vmm_describe(struct source *base, json_t **description, json_t *warnings,
                        struct error *e)
{
    struct source_vmm *s = source_vmm_of(base);
    char status[VM_STATUS_BYTES];
    int r = vm_status_get(s->c.q, base->timeout_ms, status, e);
    if (r == 0)
        r = source_control_find_hazards(&s->c, NULL, warnings, e);
    return r < 0 ? r : vmm_control_describe(description, s->vm, status, &base->target, e);
}

/* The blocks must be at the instant what they were when they were looked up. */
static int check_unchanged(struct source_vmm *s, struct error *e)
{
    json_t *now = NULL;
    int r = vmm_control_query(&now, s->c.q, s->c.base.timeout_ms, e);
    if (r == 0 && !json_equal(now, s->vm)) {
        error_set(e, VMSNAP_EXIT_TARGET, EAGAIN,
                  "the VM changed while the snapshot was being prepared (memory or a CPU was added "
                  "or removed)");
        error_hint(e, "try again");
        r = -EAGAIN;
    }
    json_decref(now);
    return r;
}

static int vmm_pause(struct source *base, bool *was_running, struct error *e)
{
    struct source_vmm *s = source_vmm_of(base);
    int r = source_control_stop(&s->c, was_running, e);
    return r < 0 ? r : check_unchanged(s, e);
}

/* What the VMM says that it wrote must be what there is: a state cut short is no state. */
static int check_length(const json_t *answer, size_t len, struct error *e)
{
    const json_t *bytes = json_object_get(answer, "bytes");
    if (json_is_integer(bytes) && (uint64_t)json_integer_value(bytes) == len)
        return 0;
    return error_set(e, VMSNAP_EXIT_VMM, EPROTO,
                     "the VMM says that its state has %lld bytes, but wrote %zu",
                     (long long)json_integer_value(bytes), len);
}

static int vmm_save_state(struct source *base, void **buf, size_t *len, struct error *e)
{
    struct source_vmm *s = source_vmm_of(base);
    CLEANUP_FD int write_fd = -1;
    CLEANUP_FREE void *state = NULL;
    json_t *answer = NULL;
    int r = source_control_make_state_fd(&s->c, &write_fd, e);
    if (r == 0)
        r = qmp_command(s->c.q, "save-state", NULL, write_fd, base->timeout_ms, &answer, e);
    if (r == 0)
        r = source_control_read_state(&s->c, &state, len, e);
    if (r == 0)
        r = check_length(answer, *len, e);
    json_decref(answer);
    TESTHOOK_POINT("source-after-state");
    if (r < 0) {
        error_wrap(e, "saving the device state");
        return r;
    }
    *buf = take_ptr(&state);
    return 0;
}

static int vmm_resume(struct source *base, struct error *e)
{
    struct source_vmm *s = source_vmm_of(base);
    int r = source_control_continue(&s->c, e);
    if (r == 0)
        source_control_drop_state(&s->c);
    return r;
}

static void vmm_close(struct source *base)
{
    struct source_vmm *s = source_vmm_of(base);
    source_control_close(&s->c);
    json_decref(s->vm);
    free(s);
}

static const struct source_ops vmm_ops = {
    .name = "vmm",
    .describe = vmm_describe,
    .refuse_hazards = source_control_refuse_hazards,
    .prepare_memory = source_control_prepare_memory,
    .restore_memory = source_control_restore_memory,
    .prepare_pause = source_control_prepare_pause,
    .pause = vmm_pause,
    .save_state = vmm_save_state,
    .resume = vmm_resume,
    .resume_after_death = source_control_resume_after_death,
    .pause_times = source_control_pause_times,
    .close = vmm_close,
};

static int find_memory(struct source_vmm *s, bool pid_given, struct error *e)
{
    struct source_control *c = &s->c;
    int r = vmm_control_query(&s->vm, c->q, c->base.timeout_ms, e);
    if (r < 0)
        return r;
    r = vmm_control_find_memory(&c->memory, s->vm, &c->base.target, e);
    if (r == 0)
        source_control_show_memory(c);
    else if (!pid_given && e && e->exit_code == VMSNAP_EXIT_TARGET)
        error_hint(e,
                   "process %d listens on the control socket; if it only passes commands on to the "
                   "VMM, name the VMM's own process with --pid",
                   (int)c->base.target.pid);
    return r;
}

int source_vmm_open(struct source **out, struct source_link *link, int timeout_ms, struct error *e)
{
    struct source_vmm *s = calloc(1, sizeof(*s));
    if (!s) {
        source_link_close(link);
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot open the VM");
    }
    int r = source_control_init(&s->c, &vmm_ops, link, timeout_ms, e);
    if (r == 0)
        r = source_control_refuse_state(&s->c, e);
    if (r == 0)
        r = find_memory(s, link->pid_given, e);
    if (r < 0) {
        vmm_close(&s->c.base);
        return r;
    }
    *out = &s->c.base;
    return 0;
}
