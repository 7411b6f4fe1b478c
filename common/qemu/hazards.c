#include "common/qemu/hazards.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/qemu/machine.h"
#include "common/qemu/machine_devices.h"
#include "common/qemu/qom.h"

/* What several kinds look at, fetched once. */
struct search {
    const struct hazard_scope *scope;
    struct qmp *q;
    const json_t *described;
    struct qom qom;
    json_t *devices;   /* machine_describe_devices() */
    json_t *migration; /* query-migrate */
    char *network;     /* info network */
};

/* The first device whose type starts with `prefix`, or NULL. */
static const json_t *device_of_type(const struct search *s, const char *prefix)
{
    size_t i;
    const json_t *d;
    json_array_foreach(s->devices, i, d)
    {
        if (strncmp(json_text(d, "type", ""), prefix, strlen(prefix)) == 0)
            return d;
    }
    return NULL;
}

/* True when nothing that is written there stays (a null-co disk of a benchmark). */
static bool keeps_nothing(const json_t *inserted)
{
    const char *driver = json_text(inserted, "drv", "");
    return strcmp(driver, "null-co") == 0 || strcmp(driver, "null-aio") == 0;
}

/* A disk with a medium that the guest can write. */
static int look_disks(void *opaque, struct hazard *h, struct error *e)
{
    struct search *s = opaque;
    json_t *blocks = NULL;
    int r = qom_ask(&s->qom, "query-block", NULL, &blocks, e);
    size_t i;
    const json_t *b;
    json_array_foreach(blocks, i, b)
    {
        const json_t *inserted = json_object_get(b, "inserted");
        if (!inserted || json_is_true(json_object_get(inserted, "ro")) || keeps_nothing(inserted))
            continue;
        const char *node = json_text(inserted, "node-name", "?");
        hazard_found(h,
                     "%.60s (%.120s) is writable: it goes on changing after the snapshot's instant",
                     json_text(b, "device", node), json_text(inserted, "file", "?"));
        break;
    }
    json_decref(blocks);
    return r;
}

/*
 * Private memory: a discard waits until we have read its event, so the snapshot can fail cleanly.
 * Memory in a file: the hole is there before anybody is told, and an old page would be lost.
 */
static int look_balloon(void *opaque, struct hazard *h, struct error *e)
{
    const struct search *s = opaque;
    (void)e;
    const json_t *d = device_of_type(s, "virtio-balloon");
    if (!d)
        return 0;
    for (size_t i = 0; i < s->scope->n_regions; i++) {
        const struct region *r = &s->scope->regions[i];
        if (r->kind == REGION_ANON)
            continue;
        h->allowable = false;
        hazard_found(
            h,
            "%.60s can discard memory while it is being saved, and of %.60s, which lies in "
            "a file, that is not told before it is gone",
            json_text(d, "type", "?"), r->name);
        return 0;
    }
    hazard_found(h,
                 "%.60s can discard memory while it is being saved; the snapshot then fails, the "
                 "guest is not harmed",
                 json_text(d, "type", "?"));
    return 0;
}

static int look_blocked(void *opaque, struct hazard *h, struct error *e)
{
    const struct search *s = opaque;
    (void)e;
    const json_t *reasons = json_object_get(s->migration, "blocked-reasons");
    const char *first = json_string_value(json_array_get(reasons, 0));
    if (json_array_size(reasons) > 0)
        hazard_found(h, "QEMU does not let this VM be migrated: %.180s", first ? first : "?");
    return 0;
}

static int look_virtio_mem(void *opaque, struct hazard *h, struct error *e)
{
    const struct search *s = opaque;
    (void)e;
    const json_t *d = device_of_type(s, "virtio-mem");
    if (d)
        hazard_found(h, "%.60s plugs and unplugs memory while it is being saved",
                     json_text(d, "type", "?"));
    return 0;
}

static int look_vhost_user(void *opaque, struct hazard *h, struct error *e)
{
    const struct search *s = opaque;
    (void)e;
    const json_t *d = device_of_type(s, "vhost-user");
    if (d)
        hazard_found(h, "%.60s is served by another process, whose writes are not protected",
                     json_text(d, "type", "?"));
    else if (strstr(s->network, "type=vhost-user"))
        hazard_found(h, "a network device is served by another process (vhost-user), whose writes "
                        "are not protected");
    return 0;
}

static int look_encrypted(void *opaque, struct hazard *h, struct error *e)
{
    struct search *s = opaque;
    json_t *guard = NULL;
    int r = qom_get_if_any(&s->qom, "/machine", "confidential-guest-support", &guard, e);
    const char *path = json_string_value(guard);
    if (path && *path)
        hazard_found(h, "the guest's memory is encrypted (%.100s)", path);
    json_decref(guard);
    return r;
}

/* Outgoing or incoming; "completed", "failed" and "cancelled" are over. */
static int look_migration(void *opaque, struct hazard *h, struct error *e)
{
    const struct search *s = opaque;
    (void)e;
    static const char *const over[] = {"none", "completed", "failed", "cancelled"};
    const char *status = json_text(s->migration, "status", "none");
    bool active = true;
    for (size_t i = 0; i < sizeof(over) / sizeof(*over); i++)
        active &= strcmp(status, over[i]) != 0;
    if (active)
        hazard_found(h, "the VM is being migrated or saved (query-migrate says \"%.40s\")", status);
    return 0;
}

/* True when a register "NAME=hex" of any CPU has the bit. */
static bool register_bit(const char *text, const char *name, unsigned bit)
{
    size_t len = strlen(name);
    for (const char *at = text; (at = strstr(at, name)); at += len)
        if (at[len] == '=' && strtoull(at + len + 1, NULL, 16) >> bit & 1)
            return true;
    return false;
}

/* A guest that has switched virtualisation on: CR4.VMXE (Intel SDM 2.5), EFER.SVME (AMD APM 3.1.7).
 * Under TCG the nested state is part of the CPU's, and no hazard. */
static int look_nested(void *opaque, struct hazard *h, struct error *e)
{
    struct search *s = opaque;
    json_t *kvm = NULL;
    int r = qom_ask(&s->qom, "query-kvm", NULL, &kvm, e);
    bool enabled = json_is_true(json_object_get(kvm, "enabled"));
    json_decref(kvm);
    if (r < 0 || !enabled)
        return r;
    CLEANUP_FREE char *text = NULL;
    r = qmp_hmp(s->q, "info registers -a", clock_ms_until(s->qom.deadline_ns), &text, e);
    if (r == 0 && (register_bit(text, "CR4", 13) || register_bit(text, "EFER", 12))) {
        h->warning = true;
        hazard_found(h, "the guest has switched virtualisation on and may run guests of its own");
    }
    return r;
}

static int look_hotplug(void *opaque, struct hazard *h, struct error *e)
{
    const struct search *s = opaque;
    json_t *devices = json_pack("{s:O}", "devices", s->devices);
    if (!devices)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot list devices");
    CLEANUP_FREE char *late = machine_hotplugged(s->described ? s->described : devices);
    json_decref(devices);
    if (late) {
        h->warning = true;
        hazard_found(h,
                     "plugged since the VM's start, so not on its command line: %.160s; a "
                     "restore needs -- VMM ARG... with them",
                     late);
    }
    return 0;
}

/* The kernel has not shown one (common/hazards_process.c). */
static int look_vdpa(void *opaque, struct hazard *h, struct error *e)
{
    const struct search *s = opaque;
    (void)e;
    if (strstr(s->network, "type=vhost-vdpa"))
        hazard_found(h, "a vDPA network device is in use: it writes memory unseen");
    return 0;
}

static const struct hazard_probe probes[] = {
    {"disks", look_disks},
    {"balloon", look_balloon},
    {"blocked-migration", look_blocked},
    {"vhost-user", look_vhost_user},
    {"vdpa", look_vdpa},
    {"virtio-mem", look_virtio_mem},
    {"encrypted-guest", look_encrypted},
    {"migration", look_migration},
    {"nested", look_nested},
    {"hotplug", look_hotplug},
};

static int fetch(struct search *s, struct error *e)
{
    s->devices = json_incref(json_object_get(s->described, "devices"));
    int r = s->devices ? 0 : machine_describe_devices(&s->devices, &s->qom, e);
    if (r == 0)
        r = qom_ask(&s->qom, "query-migrate", NULL, &s->migration, e);
    if (r == 0)
        r = qmp_hmp(s->q, "info network", clock_ms_until(s->qom.deadline_ns), &s->network, e);
    return r;
}

int qemu_hazards_find(struct hazard *out, size_t *count, const struct hazard_scope *scope,
                      struct qmp *q, const json_t *described, int timeout_ms, struct error *e)
{
    struct search s = {
        .scope = scope, .q = q, .described = described, .qom = qom_within(q, timeout_ms)};
    int r = fetch(&s, e);
    *count = 0;
    if (r == 0)
        r = hazards_find(out, count, scope, probes, sizeof(probes) / sizeof(*probes), &s, e);
    json_decref(s.devices);
    json_decref(s.migration);
    free(s.network);
    return r;
}
