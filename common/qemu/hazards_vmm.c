/* Hazards that QEMU itself says, through QMP. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/qemu/hazards_private.h"
#include "common/qemu/machine.h"

/* The first device whose type starts with `prefix`, or NULL. */
static const json_t *device_of_type(const struct hazard_search *s, const char *prefix)
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
int hazard_look_disks(struct hazard_search *s, struct hazard *h, struct error *e)
{
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
int hazard_look_balloon(struct hazard_search *s, struct hazard *h, struct error *e)
{
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

int hazard_look_blocked(struct hazard_search *s, struct hazard *h, struct error *e)
{
    (void)e;
    const json_t *reasons = json_object_get(s->migration, "blocked-reasons");
    const char *first = json_string_value(json_array_get(reasons, 0));
    if (json_array_size(reasons) > 0)
        hazard_found(h, "QEMU does not let this VM be migrated: %.180s", first ? first : "?");
    return 0;
}

int hazard_look_virtio_mem(struct hazard_search *s, struct hazard *h, struct error *e)
{
    (void)e;
    const json_t *d = device_of_type(s, "virtio-mem");
    if (d)
        hazard_found(h, "%.60s plugs and unplugs memory while it is being saved",
                     json_text(d, "type", "?"));
    return 0;
}

int hazard_look_vhost_user(struct hazard_search *s, struct hazard *h, struct error *e)
{
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

int hazard_look_encrypted(struct hazard_search *s, struct hazard *h, struct error *e)
{
    json_t *guard = NULL;
    int r = qom_get_if_any(&s->qom, "/machine", "confidential-guest-support", &guard, e);
    const char *path = json_string_value(guard);
    if (path && *path)
        hazard_found(h, "the guest's memory is encrypted (%.100s)", path);
    json_decref(guard);
    return r;
}

/* Outgoing or incoming; "completed", "failed" and "cancelled" are over. */
int hazard_look_migration(struct hazard_search *s, struct hazard *h, struct error *e)
{
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
int hazard_look_nested(struct hazard_search *s, struct hazard *h, struct error *e)
{
    json_t *kvm = NULL;
    int r = qom_ask(&s->qom, "query-kvm", NULL, &kvm, e);
    bool enabled = json_is_true(json_object_get(kvm, "enabled"));
    json_decref(kvm);
    if (r < 0 || !enabled)
        return r;
    CLEANUP_FREE char *text = NULL;
    r = qmp_hmp(s->scope->q, "info registers -a", clock_ms_until(s->qom.deadline_ns), &text, e);
    if (r == 0 && (register_bit(text, "CR4", 13) || register_bit(text, "EFER", 12))) {
        h->warning = true;
        hazard_found(h, "the guest has switched virtualisation on and may run guests of its own");
    }
    return r;
}

int hazard_look_hotplug(struct hazard_search *s, struct hazard *h, struct error *e)
{
    json_t *devices = json_pack("{s:O}", "devices", s->devices);
    if (!devices)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot list devices");
    CLEANUP_FREE char *late =
        machine_hotplugged(s->scope->described ? s->scope->described : devices);
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
