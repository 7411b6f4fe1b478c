/*
 * QEMU puts devices under three nodes of its object tree: /machine/peripheral (those with an id),
 * /machine/peripheral-anon (-device without an id) and /machine/unattached (what the machine type
 * makes, or drives and NICs given the old way). The first two are what a command line can lack.
 * Inner devices (virtio-net-device below virtio-net-pci) follow from their outer ones.
 */
#include "common/qemu/machine_devices.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEVICES_MAX 65536u
#define PCI_DEPTH_MAX 16

static int too_many(struct error *e)
{
    return error_set(e, VMSNAP_EXIT_TARGET, E2BIG, "the VM has too many devices");
}

/* "child<TYPE>" -> TYPE in `type`; false for anything else. */
static bool child_type(const json_t *property, char *type, size_t size)
{
    const char *text = json_text(property, "type", "");
    size_t len = strlen(text);
    if (strncmp(text, "child<", 6) != 0 || text[len - 1] != '>' || len - 7 >= size)
        return false;
    memcpy(type, text + 6, len - 7);
    type[len - 7] = '\0';
    return true;
}

/* Whether a device came after the start: asked only where that can be. */
static int describe_hotplugged(json_t *device, struct qom *m, const char *path, struct error *e)
{
    json_t *value = NULL;
    int r = qom_get_if_any(m, path, "hotplugged", &value, e);
    if (r == 0)
        json_object_set_new(device, "hotplugged", json_boolean(json_is_true(value)));
    json_decref(value);
    return r;
}

static int add_device(json_t *out, struct qom *m, const char *parent, const json_t *property,
                      bool by_user, struct error *e)
{
    char type[128], path[512];
    const char *name = json_text(property, "name", "");
    if (!child_type(property, type, sizeof(type)))
        return 0;
    /* Besides devices the machine's own node holds interrupt lines and memory regions. */
    if (!by_user && strncmp(name, "device[", 7) != 0)
        return 0;
    if (json_array_size(out) >= DEVICES_MAX)
        return too_many(e);
    snprintf(path, sizeof(path), "%s/%s", parent, name);
    json_t *device = json_pack("{s:s, s:s}", "path", path, "type", type);
    json_array_append_new(out, device);
    if (!by_user)
        return 0;
    if (strncmp(name, "device[", 7) != 0)
        json_object_set_new(device, "id", json_string(name));
    return describe_hotplugged(device, m, path, e);
}

static int add_children(json_t *out, struct qom *m, const char *parent, bool by_user,
                        struct error *e)
{
    json_t *list = NULL;
    int r = qom_list(m, parent, &list, e);
    size_t i;
    const json_t *p;
    json_array_foreach(list, i, p)
    {
        if (r == 0)
            r = add_device(out, m, parent, p, by_user, e);
    }
    json_decref(list);
    return r;
}

int machine_describe_devices(json_t **out, struct qom *m, struct error *e)
{
    json_t *devices = json_array();
    int r = add_children(devices, m, "/machine/peripheral", true, e);
    if (r == 0)
        r = add_children(devices, m, "/machine/peripheral-anon", true, e);
    if (r == 0)
        r = add_children(devices, m, "/machine/unattached", false, e);
    if (r < 0)
        json_decref(devices);
    else
        *out = devices;
    return r;
}

/*
 * One PCI function, and for a bridge those behind it. `where` is the way from the root bus: slots
 * and functions, since the numbers of the buses behind bridges are the guest's to give.
 */
static int add_pci(json_t *out, const json_t *device, const char *where, int depth, struct error *e)
{
    static const char *const keys[][2] = {{"vendor", "vendor"},
                                          {"device", "device"},
                                          {"subsystem-vendor", "subsystem_vendor"},
                                          {"subsystem", "subsystem"}};
    if (depth > PCI_DEPTH_MAX || json_array_size(out) >= DEVICES_MAX)
        return too_many(e);
    char path[PCI_DEPTH_MAX * 8 + 32];
    snprintf(path, sizeof(path), "%s%02x.%x", where,
             (unsigned)json_integer_value(json_object_get(device, "slot")) & 0xffu,
             (unsigned)json_integer_value(json_object_get(device, "function")) & 0xfu);
    json_t *one = json_pack("{s:s}", "path", path);
    const json_t *id = json_object_get(device, "id");
    for (size_t i = 0; i < sizeof(keys) / sizeof(*keys); i++)
        json_object_set(one, keys[i][1], json_object_get(id, keys[i][0]));
    json_array_append_new(out, one);
    strcat(path, "/");
    size_t i;
    const json_t *behind;
    json_array_foreach(json_object_get(json_object_get(device, "pci_bridge"), "devices"), i, behind)
    {
        int r = add_pci(out, behind, path, depth + 1, e);
        if (r < 0)
            return r;
    }
    return 0;
}

static int add_bus(json_t *out, const json_t *bus, struct error *e)
{
    char where[16];
    size_t i;
    const json_t *device;
    snprintf(where, sizeof(where),
             "%02x:", (unsigned)json_integer_value(json_object_get(bus, "bus")) & 0xffu);
    json_array_foreach(json_object_get(bus, "devices"), i, device)
    {
        int r = add_pci(out, device, where, 0, e);
        if (r < 0)
            return r;
    }
    return 0;
}

int machine_describe_pci(json_t **out, struct qom *m, struct error *e)
{
    json_t *buses = NULL, *functions = json_array();
    int r = qom_ask(m, "query-pci", NULL, &buses, e);
    size_t i;
    const json_t *bus;
    json_array_foreach(buses, i, bus)
    {
        if (r == 0)
            r = add_bus(functions, bus, e);
    }
    json_decref(buses);
    if (r < 0)
        json_decref(functions);
    else
        *out = functions;
    return r;
}

static json_t *disk_object(const json_t *block)
{
    const json_t *inserted = json_object_get(block, "inserted");
    bool writable = inserted && !json_is_true(json_object_get(inserted, "ro"));
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:b, s:b}", "device",
                     json_text(block, "device", ""), "qdev", json_text(block, "qdev", ""), "node",
                     json_text(inserted, "node-name", ""), "file", json_text(inserted, "file", ""),
                     "format", json_text(inserted, "drv", ""), "inserted", inserted != NULL,
                     "writable", (int)writable);
}

int machine_describe_disks(json_t **out, struct qom *m, struct error *e)
{
    json_t *blocks = NULL, *disks = json_array();
    int r = qom_ask(m, "query-block", NULL, &blocks, e);
    size_t i;
    const json_t *b;
    json_array_foreach(blocks, i, b)
    {
        json_array_append_new(disks, disk_object(b));
    }
    json_decref(blocks);
    if (r < 0)
        json_decref(disks);
    else
        *out = disks;
    return r;
}

static size_t count_type(const json_t *list, const char *type)
{
    size_t i, n = 0;
    const json_t *d;
    json_array_foreach(list, i, d)
    {
        n += strcmp(json_text(d, "type", ""), type) == 0;
    }
    return n;
}

/* The last device of a type of which `a` has more than `b`, or NULL. Ids don't count: the guest
 * does not see them. */
static const json_t *surplus_device(const json_t *a, const json_t *b)
{
    for (size_t i = json_array_size(a); i-- > 0;) {
        const json_t *d = json_array_get(a, i);
        const char *type = json_text(d, "type", "");
        if (count_type(a, type) > count_type(b, type))
            return d;
    }
    return NULL;
}

bool machine_devices_differ(const json_t *recorded, const json_t *actual, char *text, size_t size)
{
    const json_t *lost = surplus_device(recorded, actual);
    const json_t *gained = lost ? NULL : surplus_device(actual, recorded);
    const json_t *d = lost ? lost : gained;
    if (!d)
        return false;
    const char *id = json_text(d, "id", "");
    snprintf(text, size, "device %.60s%s%.60s%s: %s", json_text(d, "type", "?"), *id ? " (id " : "",
             id, *id ? ")" : "", lost ? "recorded, but not here" : "here, but not recorded");
    return true;
}

/* A function of `a` that `b` has not in the same place, or NULL. */
static const json_t *surplus_function(const json_t *a, const json_t *b)
{
    size_t i, k;
    const json_t *x, *y;
    json_array_foreach(a, i, x)
    {
        bool found = false;
        json_array_foreach(b, k, y)
        {
            found |= json_equal(x, y);
        }
        if (!found)
            return x;
    }
    return NULL;
}

bool machine_pci_differ(const json_t *recorded, const json_t *actual, char *text, size_t size)
{
    const json_t *lost = surplus_function(recorded, actual);
    const json_t *f = lost ? lost : surplus_function(actual, recorded);
    if (!f)
        return false;
    snprintf(text, size, "PCI device %04x:%04x at %.100s: %s",
             (unsigned)json_integer_value(json_object_get(f, "vendor")),
             (unsigned)json_integer_value(json_object_get(f, "device")), json_text(f, "path", "?"),
             lost ? "recorded, but not here" : "here, but not recorded");
    return true;
}
