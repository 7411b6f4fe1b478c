#include "common/vmm/firecracker_api.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/json_text.h"

#define MIB (1ull << 20)
#define NO_FIRECRACKER "give the socket of a Firecracker's --api-sock"
#define MEMORY_MAX_MIB (1ull << 24) /* 16 TiB; Firecracker itself takes 1 TiB */

/* Of a text that somebody else made: what can stand in a message. */
static void take_text(char *out, size_t size, const char *text)
{
    size_t n = 0;
    for (; *text && n + 1 < size; text++)
        if ((unsigned char)*text >= 0x20 && (unsigned char)*text < 0x7f)
            out[n++] = *text;
    out[n] = '\0';
}

void firecracker_fault(const struct http_reply *reply, char *text, size_t size)
{
    take_text(text, size, json_text(reply->body, "fault_message", ""));
}

static int unexpected(const char *request, struct http_reply *reply, struct error *e)
{
    char fault[384];
    firecracker_fault(reply, fault, sizeof(fault));
    error_set(e, VMSNAP_EXIT_TARGET, 0, "%s: status %d%s%s", request, reply->status,
              fault[0] ? ", " : "", fault);
    error_hint(e,
               "the VMM's log tells more; 'vmsnap check --api SOCK' looks at what is in the way");
    json_decref(reply->body);
    return -EPROTO;
}

int firecracker_get(struct http *h, const char *target, int timeout_ms, json_t **out,
                    struct error *e)
{
    struct http_reply reply = {0};
    *out = NULL;
    int ret = http_call(h, "GET", target, NULL, timeout_ms, &reply, e);
    if (ret)
        return ret;
    if (reply.status >= 400 && reply.status < 500) {
        json_decref(reply.body);
        return 0;
    }
    if (reply.status != 200 || !json_is_object(reply.body)) {
        char request[64];
        snprintf(request, sizeof(request), "GET %s", target);
        return unexpected(request, &reply, e);
    }
    *out = reply.body;
    return 0;
}

/* ---- the VM ---- */

int firecracker_get_info(struct http *h, int timeout_ms, struct firecracker_info *info,
                         struct error *e)
{
    static const char *const names[] = {"Running", "Paused", "Not started"};
    json_t *o = NULL;
    int ret = firecracker_get(h, "/", timeout_ms, &o, e);
    if (ret)
        return ret;
    size_t i = 0;
    while (i < 3 && strcmp(json_text(o, "state", ""), names[i]) != 0)
        i++;
    *info = (struct firecracker_info){.state = (enum firecracker_state)i};
    take_text(info->id, sizeof(info->id), json_text(o, "id", ""));
    take_text(info->version, sizeof(info->version), json_text(o, "vmm_version", ""));
    json_decref(o);
    if (i < 3)
        return 0;
    error_set(e, VMSNAP_EXIT_TARGET, EPROTO,
              "who listens on the API socket is no Firecracker: its "
              "GET / tells no state of a VM");
    error_hint(e, NO_FIRECRACKER);
    return -EPROTO;
}

int firecracker_check_state(const struct firecracker_info *info, struct error *e)
{
    if (info->state != FIRECRACKER_NOT_STARTED)
        return 0;
    error_set(e, VMSNAP_EXIT_TARGET, 0,
              "the microVM is not started: a snapshot makes sense only of a running or paused VM");
    error_hint(e, "start it (PUT /actions), or load its snapshot (PUT /snapshot/load), first");
    return -EINVAL;
}

int firecracker_set_state(struct http *h, const char *state, int timeout_ms, struct error *e)
{
    char body[64], request[64];
    struct http_reply reply = {0};
    snprintf(body, sizeof(body), "{\"state\": \"%s\"}", state);
    int ret = http_call(h, "PATCH", "/vm", body, timeout_ms, &reply, e);
    if (ret)
        return ret;
    if (reply.status != 204 && reply.status != 200) {
        snprintf(request, sizeof(request), "PATCH /vm to %s", state);
        return unexpected(request, &reply, e);
    }
    json_decref(reply.body);
    return 0;
}

int firecracker_get_memory(struct http *h, int timeout_ms, json_t **machine, uint64_t *bytes,
                           struct error *e)
{
    json_t *o = NULL;
    int ret = firecracker_get(h, "/machine-config", timeout_ms, &o, e);
    if (ret)
        return ret;
    json_int_t mib = json_integer_value(json_object_get(o, "mem_size_mib"));
    if (mib <= 0 || (uint64_t)mib > MEMORY_MAX_MIB) {
        json_decref(o);
        error_set(e, VMSNAP_EXIT_TARGET, EPROTO,
                  "GET /machine-config tells no sensible mem_size_mib");
        error_hint(e, NO_FIRECRACKER);
        return -EPROTO;
    }
    *machine = o;
    *bytes = (uint64_t)mib * MIB;
    return 0;
}

/* ---- hazards ---- */

static int look_disks(void *opaque, struct hazard *h, struct error *e)
{
    (void)e;
    size_t i, n = 0;
    const json_t *drive, *first = NULL;
    json_array_foreach(json_object_get(opaque, "drives"), i, drive)
    {
        if (json_is_true(json_object_get(drive, "is_read_only")))
            continue;
        first = n++ ? first : drive;
    }
    char id[64];
    take_text(id, sizeof(id), json_text(first, "drive_id", "?"));
    if (n == 1)
        hazard_found(h, "the drive %s is writable: vmsnap saves memory and devices, not disks", id);
    else if (n)
        hazard_found(h,
                     "%zu drives are writable, %s for one: vmsnap saves memory and devices, not "
                     "disks",
                     n, id);
    return 0;
}

static int look_vhost_user(void *opaque, struct hazard *h, struct error *e)
{
    (void)e;
    size_t i;
    const json_t *drive;
    json_array_foreach(json_object_get(opaque, "drives"), i, drive)
    {
        if (json_is_string(json_object_get(drive, "socket")))
            hazard_found(h, "another process serves a drive (vhost-user) and writes guest memory");
    }
    return 0;
}

static int look_balloon(void *opaque, struct hazard *h, struct error *e)
{
    (void)e;
    if (json_is_object(json_object_get(opaque, "balloon")))
        hazard_found(h, "the VM has a balloon: it can discard memory while it is being saved");
    return 0;
}

static int look_pluggable(void *opaque, struct hazard *h, struct error *e)
{
    (void)e;
    if (json_is_object(json_object_get(opaque, "memory-hotplug")))
        hazard_found(h, "the VM has pluggable memory (PUT /hotplug/memory)");
    return 0;
}

int firecracker_find_hazards(struct hazard *out, size_t *count, const struct hazard_scope *scope,
                             const json_t *config, struct error *e)
{
    static const struct hazard_probe probes[] = {{"disks", look_disks},
                                                 {"balloon", look_balloon},
                                                 {"vhost-user", look_vhost_user},
                                                 {"virtio-mem", look_pluggable}};
    size_t n = config ? sizeof(probes) / sizeof(*probes) : 0;
    return hazards_find(out, count, scope, probes, n, (void *)(uintptr_t)config, e);
}
