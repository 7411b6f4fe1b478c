/*
 * A QEMU guest as a source: found through its QMP socket, its memory through ramblock.c, its
 * description through machine.c. The engine opens it before it forks, so that worker and guardian
 * share the connection; only one of them uses it at a time (the guardian after the worker's death).
 */
#include "snapshot/source/qemu.h"

#include <errno.h>
#include <stdlib.h>

#include "common/qemu/machine.h"
#include "common/qemu/qom.h"
#include "common/qemu/ramblock.h"

static int find_memory(struct source_qemu *s, bool pid_given, struct error *e)
{
    struct source_control *c = &s->c;
    int r = qmp_hmp(c->q, "info ramblock", c->base.timeout_ms, &s->blocks_text, e);
    if (r == 0)
        r = ramblocks_find(&c->memory, c->q, &c->base.target, c->base.timeout_ms, e);
    if (r < 0) {
        if (!pid_given && e && e->exit_code == VMSNAP_EXIT_TARGET)
            error_hint(e,
                       "process %d listens on the QMP socket; if it only passes commands on to "
                       "QEMU (libvirtd does), name QEMU's own process with --pid",
                       (int)c->base.target.pid);
        return r;
    }
    source_control_show_memory(c);
    return 0;
}

int source_qemu_list_plugged(struct qmp *q, int timeout_ms, json_t **plugged, struct error *e)
{
    static const char *const nodes[] = {"/machine/peripheral", "/machine/peripheral-anon"};
    struct qom m = qom_within(q, timeout_ms);
    json_t *all = json_array();
    int r = 0;
    for (size_t i = 0; i < sizeof(nodes) / sizeof(*nodes) && r == 0; i++) {
        json_t *list = NULL;
        r = qom_list(&m, nodes[i], &list, e);
        if (r == 0)
            json_array_append_new(all, list);
    }
    if (r < 0)
        json_decref(all);
    else
        *plugged = all;
    return r;
}

static int qemu_describe(struct source *base, json_t **description, json_t *warnings,
                         struct error *e)
{
    struct source_qemu *s = source_qemu_of(base);
    json_t *described = NULL;
    int r = source_qemu_list_plugged(s->c.q, base->timeout_ms, &s->plugged, e);
    if (r == 0)
        r = machine_describe(&described, s->c.q, &base->target, base->timeout_ms, e);
    if (r == 0)
        r = source_control_find_hazards(&s->c, described, warnings, e);
    if (r < 0) {
        json_decref(described);
        return r;
    }
    *description = described;
    return 0;
}

static void qemu_close(struct source *base)
{
    struct source_qemu *s = source_qemu_of(base);
    source_control_close(&s->c);
    free(s->blocks_text);
    json_decref(s->plugged);
    free(s);
}

static const struct source_ops qemu_ops = {
    .name = "qemu",
    .describe = qemu_describe,
    .refuse_hazards = source_control_refuse_hazards,
    .prepare_memory = source_control_prepare_memory,
    .restore_memory = source_control_restore_memory,
    .prepare_pause = source_control_prepare_pause,
    .pause = source_qemu_pause,
    .save_state = source_qemu_save_state,
    .resume = source_qemu_resume,
    .resume_after_death = source_control_resume_after_death,
    .pause_times = source_control_pause_times,
    .close = qemu_close,
};

int source_qemu_open(struct source **out, struct source_link *link, int timeout_ms, struct error *e)
{
    struct source_qemu *s = calloc(1, sizeof(*s));
    if (!s) {
        source_link_close(link);
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot open the VM");
    }
    s->state_fdset = -1;
    int r = source_control_init(&s->c, &qemu_ops, link, timeout_ms, e);
    if (r == 0)
        r = source_control_refuse_state(&s->c, e);
    if (r == 0)
        r = find_memory(s, link->pid_given, e);
    if (r < 0) {
        qemu_close(&s->c.base);
        return r;
    }
    *out = &s->c.base;
    return 0;
}
