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
#define PLACE_BYTES 160

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

/* What is asked only of devices that a user can choose: whether it came after the start, and where
 * it is plugged in: "bus" is the bus's QOM path, "addr" slot and function of a PCI device. */
static int describe_plug(json_t *device, struct qom *m, const char *path, struct error *e)
{
    static const char *const properties[] = {"parent_bus", "addr"}, *const keys[] = {"bus", "addr"};
    json_t *value = NULL;
    int r = qom_get_if_any(m, path, "hotplugged", &value, e);
    json_object_set_new(device, "hotplugged", json_boolean(json_is_true(value)));
    json_decref(value);
    for (size_t i = 0; r == 0 && i < sizeof(keys) / sizeof(*keys); i++) {
        r = qom_get_if_any(m, path, properties[i], &value, e);
        if (r == 0 && value)
            json_object_set_new(device, keys[i], value);
    }
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
    return describe_plug(device, m, path, e);
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

static const json_t *device_at(const json_t *devices, const char *path, size_t len)
{
    size_t i;
    const json_t *d;
    json_array_foreach(devices, i, d)
    {
        const char *at = json_text(d, "path", "");
        if (strlen(at) == len && memcmp(at, path, len) == 0)
            return d;
    }
    return NULL;
}

/*
 * Where a PCI device is as the guest sees it: "pcie.0/04.0/00.0" is function 00.0 behind the bridge
 * in slot 4 of bus pcie.0. The ids of bridges are left out, so are bus numbers, which the guest
 * gives. False for what is not on a PCI bus.
 */
static bool find_place(const json_t *devices, const json_t *device, int depth, char *out,
                       size_t size)
{
    const char *bus = json_text(device, "bus", NULL);
    const json_t *addr = json_object_get(device, "addr");
    const char *name = bus ? strrchr(bus, '/') : NULL;
    char bridge_place[PLACE_BYTES];
    if (!name || !json_is_integer(addr) || depth > PCI_DEPTH_MAX)
        return false;
    const json_t *bridge = device_at(devices, bus, (size_t)(name - bus));
    bool behind = bridge && find_place(devices, bridge, depth + 1, bridge_place, PLACE_BYTES);
    unsigned devfn = (unsigned)json_integer_value(addr) & 0xffu;
    int n =
        snprintf(out, size, "%s/%02x.%x", behind ? bridge_place : name + 1, devfn >> 3, devfn & 7u);
    return n > 0 && (size_t)n < size;
}

static void add_places(json_t *devices)
{
    size_t i;
    json_t *d;
    json_array_foreach(devices, i, d)
    {
        char place[PLACE_BYTES];
        if (find_place(devices, d, 0, place, sizeof(place)))
            json_object_set_new(d, "place", json_string(place));
    }
    json_array_foreach(devices, i, d)
    {
        json_object_del(d, "bus");
        json_object_del(d, "addr");
    }
}

int machine_describe_devices(json_t **out, struct qom *m, struct error *e)
{
    json_t *devices = json_array();
    int r = add_children(devices, m, "/machine/peripheral", true, e);
    if (r == 0)
        r = add_children(devices, m, "/machine/peripheral-anon", true, e);
    if (r == 0)
        r = add_children(devices, m, "/machine/unattached", false, e);
    add_places(devices);
    if (r < 0)
        json_decref(devices);
    else
        *out = devices;
    return r;
}

/* One PCI function. Those behind bridges are left out: QEMU tells them only once the guest's
 * firmware has numbered the buses, and a machine that waits for its state has not got that far. */
static int add_pci(json_t *out, unsigned bus, const json_t *device, struct error *e)
{
    static const char *const keys[][2] = {{"vendor", "vendor"},
                                          {"device", "device"},
                                          {"subsystem-vendor", "subsystem_vendor"},
                                          {"subsystem", "subsystem"}};
    if (json_array_size(out) >= DEVICES_MAX)
        return too_many(e);
    char place[32];
    snprintf(place, sizeof(place), "%02x:%02x.%x", bus,
             (unsigned)json_integer_value(json_object_get(device, "slot")) & 0xffu,
             (unsigned)json_integer_value(json_object_get(device, "function")) & 0xfu);
    json_t *one = json_pack("{s:s}", "place", place);
    const json_t *id = json_object_get(device, "id");
    for (size_t i = 0; i < sizeof(keys) / sizeof(*keys); i++)
        json_object_set(one, keys[i][1], json_object_get(id, keys[i][0]));
    json_array_append_new(out, one);
    return 0;
}

static int add_bus(json_t *out, const json_t *bus, struct error *e)
{
    unsigned number = (unsigned)json_integer_value(json_object_get(bus, "bus")) & 0xffu;
    size_t i;
    const json_t *device;
    json_array_foreach(json_object_get(bus, "devices"), i, device)
    {
        int r = add_pci(out, number, device, e);
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

static bool is_alike(const json_t *a, const json_t *b)
{
    return strcmp(json_text(a, "type", ""), json_text(b, "type", "")) == 0 &&
           strcmp(json_text(a, "place", ""), json_text(b, "place", "")) == 0;
}

static size_t count_alike(const json_t *list, const json_t *device)
{
    size_t i, n = 0;
    const json_t *d;
    json_array_foreach(list, i, d)
    {
        n += is_alike(d, device);
    }
    return n;
}

static size_t count_type(const json_t *list, const json_t *device)
{
    size_t i, n = 0;
    const json_t *d;
    json_array_foreach(list, i, d)
    {
        n += strcmp(json_text(d, "type", ""), json_text(device, "type", "")) == 0;
    }
    return n;
}

/* The last device of which `a` has more, of one type in one place, than `b`; or NULL. Ids don't
 * count: the guest does not see them. `of_type`: of which it has more wherever they are; one device
 * less moves the others to other places, and none of them is the one to name. */
static const json_t *surplus_device(const json_t *a, const json_t *b, bool of_type)
{
    for (size_t i = json_array_size(a); i-- > 0;) {
        const json_t *d = json_array_get(a, i);
        if (count_alike(a, d) > count_alike(b, d) &&
            (!of_type || count_type(a, d) > count_type(b, d)))
            return d;
    }
    return NULL;
}

/* The device of `list` in the place of `like`; or NULL. */
static const json_t *device_in_place(const json_t *list, const json_t *like)
{
    const char *place = json_text(like, "place", "");
    size_t i;
    const json_t *d;
    json_array_foreach(list, i, d)
    {
        if (*place && strcmp(json_text(d, "place", ""), place) == 0)
            return d;
    }
    return NULL;
}

static void say_device(char *text, size_t size, const json_t *d, const char *fate,
                       const json_t *instead)
{
    const char *id = json_text(d, "id", ""), *place = json_text(d, "place", "");
    snprintf(text, size, "device %.60s%s%.60s%s%s%.60s: %s%s%.60s%s", json_text(d, "type", "?"),
             *id ? " (id " : "", id, *id ? ")" : "", *place ? " at " : "", place, fate,
             instead ? " (there is " : "", instead ? json_text(instead, "type", "?") : "",
             instead ? " in its place)" : "");
}

bool machine_devices_differ(const json_t *recorded, const json_t *actual, char *text, size_t size)
{
    const json_t *lost = surplus_device(recorded, actual, true);
    const json_t *gained = lost ? NULL : surplus_device(actual, recorded, true);
    const json_t *moved = lost || gained ? NULL : surplus_device(recorded, actual, false);
    if (lost)
        say_device(text, size, lost, "recorded, but not here", device_in_place(actual, lost));
    else if (gained)
        say_device(text, size, gained, "here, but not recorded", NULL);
    else if (moved)
        say_device(text, size, moved, "recorded there, but here in another place",
                   device_in_place(actual, moved));
    return lost || gained || moved;
}

/* The function of `list` in the place of `like`, or NULL. */
static const json_t *function_at(const json_t *list, const json_t *like)
{
    size_t i;
    const json_t *f;
    json_array_foreach(list, i, f)
    {
        if (strcmp(json_text(f, "place", ""), json_text(like, "place", "?")) == 0)
            return f;
    }
    return NULL;
}

static unsigned pci_id(const json_t *function, const char *key)
{
    return (unsigned)json_integer_value(json_object_get(function, key)) & 0xffffu;
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
    const json_t *instead = lost ? function_at(actual, lost) : NULL;
    int n = snprintf(text, size, "PCI device %04x:%04x at %.100s: %s", pci_id(f, "vendor"),
                     pci_id(f, "device"), json_text(f, "place", "?"),
                     lost ? "recorded, but not here" : "here, but not recorded");
    if (instead && n > 0 && (size_t)n < size)
        snprintf(text + n, size - (size_t)n, " (there is %04x:%04x in its place)",
                 pci_id(instead, "vendor"), pci_id(instead, "device"));
    return true;
}
