/*
 * A Firecracker as a source, over its API socket: facts that its API tells, memory that is found in
 * /proc (common/vmm/firecracker_memory.h), the state that it writes itself. Opened before the
 * engine forks, as QEMU's (source/qemu.c).
 */
#include "snapshot/source/firecracker.h"

#include <errno.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "common/vmm/firecracker.h"
#include "common/vmm/firecracker_memory.h"

/* What only GET /vm/config (Firecracker 0.25) tells. */
static int find_hazards(struct source_firecracker *s, json_t *warnings, struct error *e)
{
    struct source_control *c = &s->c;
    const struct hazard_scope scope = {
        .t = &c->base.target, .regions = c->base.regions, .n_regions = c->base.n_regions};
    json_t *config = NULL;
    int ret = firecracker_get(s->http, "/vm/config", c->base.timeout_ms, &config, e);
    if (!ret && !config)
        json_array_append_new(
            warnings, json_string("the VMM does not tell of its disks and its balloon (GET "
                                  "/vm/config): nobody has looked whether they are in the way"));
    if (!ret)
        ret = firecracker_find_hazards(c->hazards, &c->n_hazards, &scope, config, e);
    json_decref(config);
    return ret;
}

static int fc_describe(struct source *base, json_t **description, json_t *warnings, struct error *e)
{
    struct source_firecracker *s = source_firecracker_of(base);
    int ret = find_hazards(s, warnings, e);
    if (s->was_left)
        json_array_append_new(
            warnings,
            json_string("the VM is paused, and a vmsnap that was killed has left one so: "
                        "if it is this one, PATCH /vm {\"state\": \"Resumed\"} lets it run"));
    json_t *o = ret ? NULL : firecracker_describe();
    if (!ret && !o)
        ret = error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot describe the VM");
    if (ret)
        return ret;
    json_object_set_new(o, "vmm_version", json_string(s->info.version));
    json_object_set_new(o, "vm_name", json_string(s->info.id));
    json_object_set_new(o, "status",
                        json_string(s->info.state == FIRECRACKER_RUNNING ? "running" : "paused"));
    json_object_set_new(o, "machine_config", json_incref(s->machine));
    *description = o;
    return 0;
}

static void fc_close(struct source *base)
{
    struct source_firecracker *s = source_firecracker_of(base);
    if (s->http)
        source_firecracker_let_go(s);
    http_close(s->http);
    source_control_close(&s->c);
    json_decref(s->machine);
    free(s);
}

static const struct source_ops firecracker_ops = {
    .name = "firecracker",
    .describe = fc_describe,
    .refuse_hazards = source_control_refuse_hazards,
    .prepare_memory = source_control_prepare_memory,
    .restore_memory = source_control_restore_memory,
    .prepare_pause = source_control_prepare_pause,
    .pause = source_firecracker_pause,
    .save_state = source_firecracker_save_state,
    .resume = source_firecracker_resume,
    .resume_after_death = source_firecracker_resume_after_death,
    .pause_times = source_control_pause_times,
    .close = fc_close,
};

static int find_memory(struct source_firecracker *s, const char *const *maps, struct error *e)
{
    struct source_control *c = &s->c;
    uint64_t bytes;
    int ret = firecracker_get_memory(s->http, c->base.timeout_ms, &s->machine, &bytes, e);
    if (!ret)
        ret = firecracker_find_memory(&c->memory, &c->base.target, bytes, s->info.version, maps, e);
    if (!ret)
        source_control_show_memory(c);
    return ret;
}

static int find_vm(struct source_firecracker *s, const char *const *maps, struct error *e)
{
    int ret = firecracker_hold_find_place(&s->hold, &s->c.base.target, e);
    if (ret)
        return ret;
    unsigned n_left = firecracker_hold_clear_up(&s->hold);
    ret = firecracker_get_info(s->http, s->c.base.timeout_ms, &s->info, e);
    s->was_left = !ret && n_left && s->info.state == FIRECRACKER_PAUSED;
    if (!ret)
        ret = firecracker_check_state(&s->info, e);
    return ret ? ret : find_memory(s, maps, e);
}

/* The VMM's process, taken for this snapshot. */
static int find_process(struct source_link *link, const struct http *http, pid_t pid,
                        int timeout_ms, struct error *e)
{
    CLEANUP_FD int fd = -1;
    int ret = http_dial(http, &fd, timeout_ms, e);
    return ret ? ret : source_link_find_process(link, fd, pid, e);
}

/* Takes the link over. */
static int open_vm(struct source_firecracker *s, const struct source_link *link,
                   const struct source_firecracker_options *o, struct error *e)
{
    firecracker_hold_init(&s->hold);
    int ret = source_control_init(&s->c, &firecracker_ops, link, o->timeout_ms, e);
    return ret ? ret : find_vm(s, o->maps, e);
}

int source_firecracker_open(struct source **out, const struct source_firecracker_options *o,
                            struct error *e)
{
    struct source_link link = {.target = TARGET_NONE};
    struct source_firecracker *s = calloc(1, sizeof(*s));
    if (!s)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot open the VM");
    int ret = http_open(&s->http, o->api_path, e);
    if (!ret)
        ret = find_process(&link, s->http, o->pid, o->timeout_ms, e);
    if (ret) {
        source_link_close(&link);
        http_close(s->http);
        free(s);
        return ret;
    }
    ret = open_vm(s, &link, o, e);
    if (ret)
        fc_close(&s->c.base);
    else
        *out = &s->c.base;
    return ret;
}
