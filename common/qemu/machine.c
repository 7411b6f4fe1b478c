#include "common/qemu/machine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/qemu/launch_fds.h"
#include "common/qemu/machine_cpu.h"
#include "common/qemu/machine_devices.h"
#include "common/qemu/qom.h"

static int set_text(json_t *to, const char *key, const char *text, struct error *e)
{
    if (json_object_set_new(to, key, json_string(text)) < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot describe the VM");
    return 0;
}

static int describe_version(json_t *to, struct qom *m, struct error *e)
{
    json_t *v = NULL;
    int r = qom_ask(m, "query-version", NULL, &v, e);
    if (r < 0)
        return r;
    const json_t *n = json_object_get(v, "qemu");
    const char *package = json_text(v, "package", "");
    char text[160];
    snprintf(text, sizeof(text), "%d.%d.%d%s%.100s%s",
             (int)json_integer_value(json_object_get(n, "major")),
             (int)json_integer_value(json_object_get(n, "minor")),
             (int)json_integer_value(json_object_get(n, "micro")), *package ? " (" : "", package,
             *package ? ")" : "");
    r = set_text(to, "vmm_version", text, e);
    json_decref(v);
    return r;
}

/* A command's answer with one text in it. */
static int describe_text(json_t *to, struct qom *m, const char *command, const char *member,
                         const char *key, struct error *e)
{
    json_t *answer = NULL;
    int r = qom_ask(m, command, NULL, &answer, e);
    if (r == 0)
        r = set_text(to, key, json_text(answer, member, ""), e);
    json_decref(answer);
    return r;
}

/* QOM calls the machine "pc-i440fx-7.2-machine", also when it was started as "pc". */
static int describe_machine_type(json_t *to, struct qom *m, struct error *e)
{
    json_t *type = NULL;
    int r = qom_get(m, "/machine", "type", &type, e);
    const char *name = json_string_value(type);
    size_t len = name ? strlen(name) : 0;
    if (r == 0 && (len <= 8 || strcmp(name + len - 8, "-machine") != 0))
        r = error_set(e, VMSNAP_EXIT_TARGET, EPROTO, "QEMU names no machine type");
    if (r == 0) {
        char text[128];
        snprintf(text, sizeof(text), "%.*s", (int)len - 8, name);
        r = set_text(to, "machine", text, e);
    }
    json_decref(type);
    return r;
}

static int describe_accelerator(json_t *to, struct qom *m, bool *kvm, struct error *e)
{
    json_t *answer = NULL;
    int r = qom_ask(m, "query-kvm", NULL, &answer, e);
    *kvm = json_is_true(json_object_get(answer, "enabled"));
    json_decref(answer);
    return r < 0 ? r : set_text(to, "accelerator", *kvm ? "kvm" : "tcg", e);
}

/* A property of the machine as it is; left out when this QEMU has none of that name. */
static int describe_property(json_t *to, struct qom *m, const char *property, const char *key,
                             struct error *e)
{
    json_t *value = NULL;
    int r = qom_get_if_any(m, "/machine", property, &value, e);
    if (r == 0 && value)
        json_object_set_new(to, key, value);
    return r;
}

/* What a vmgenid shows its guest; left out without one. */
static int describe_generation_id(json_t *to, struct qom *m, struct error *e)
{
    size_t i;
    bool found = false;
    const json_t *device;
    json_array_foreach(json_object_get(to, "devices"), i, device)
    {
        found |= strcmp(json_text(device, "type", ""), "vmgenid") == 0;
    }
    if (!found)
        return 0;
    int r = describe_text(to, m, "query-vm-generation-id", "guid", "generation_id", e);
    return r == -EPROTO ? 0 : r; /* nothing depends on it */
}

static int describe_hardware(json_t *to, struct qom *m, struct error *e)
{
    bool kvm = false;
    json_t *part = NULL;
    int r = describe_machine_type(to, m, e);
    if (r == 0)
        r = describe_accelerator(to, m, &kvm, e);
    if (r == 0)
        r = describe_property(to, m, "smp", "topology", e);
    if (r == 0)
        r = describe_property(to, m, "memory", "memory", e);
    if (r == 0 && (r = machine_describe_cpus(&part, m, kvm, e)) == 0)
        json_object_set_new(to, "cpus", part);
    if (r == 0 && (r = machine_describe_devices(&part, m, e)) == 0)
        json_object_set_new(to, "devices", part);
    if (r == 0)
        r = describe_generation_id(to, m, e);
    if (r == 0 && (r = machine_describe_pci(&part, m, e)) == 0)
        json_object_set_new(to, "pci", part);
    if (r == 0 && (r = machine_describe_disks(&part, m, e)) == 0)
        json_object_set_new(to, "disks", part);
    return r;
}

int machine_describe(json_t **out, struct qmp *q, const struct target *t, int timeout_ms,
                     struct error *e)
{
    struct qom m = qom_within(q, timeout_ms);
    json_t *described = json_object(), *launch = NULL;
    int r = set_text(described, "vmm", "qemu", e);
    if (r == 0)
        r = describe_version(described, &m, e);
    if (r == 0)
        r = describe_text(described, &m, "query-name", "name", "vm_name", e);
    if (r == 0)
        r = describe_text(described, &m, "query-status", "status", "status", e);
    if (r == 0)
        r = describe_hardware(described, &m, e);
    if (r == 0 && (r = launch_describe(&launch, t, qemu_launch_scan, e)) == 0)
        json_object_set_new(described, "launch", launch);
    if (r < 0) {
        json_decref(described);
        error_wrap(e, "describing the VM");
        return r;
    }
    *out = described;
    return 0;
}

/* Appends one device to the text. */
static void name_device(FILE *f, const json_t *d, bool first)
{
    const char *id = json_text(d, "id", "");
    fprintf(f, "%s%s%s%s%s", first ? "" : ", ", json_text(d, "type", "?"), *id ? " (id " : "", id,
            *id ? ")" : "");
}

char *machine_hotplugged(const json_t *described)
{
    static const char *const lists[] = {"devices", "cpus"};
    char *text = NULL;
    size_t len = 0, found = 0, i;
    const json_t *d;
    FILE *f = open_memstream(&text, &len);
    if (!f)
        return NULL;
    for (size_t k = 0; k < sizeof(lists) / sizeof(*lists); k++) {
        json_array_foreach(json_object_get(described, lists[k]), i, d)
        {
            if (json_is_true(json_object_get(d, "hotplugged")))
                name_device(f, d, found++ == 0);
        }
    }
    fclose(f);
    if (found)
        return text;
    free(text);
    return NULL;
}

/* Two texts of the descriptions. */
static bool text_differs(const json_t *recorded, const json_t *actual, const char *key,
                         const char *what, char *text, size_t size)
{
    const char *a = json_text(recorded, key, "(nothing)"), *b = json_text(actual, key, "(nothing)");
    if (strcmp(a, b) == 0)
        return false;
    snprintf(text, size, "%s: recorded %.100s, here %.100s", what, a, b);
    return true;
}

/* Two objects of numbers: the first member of either that differs. */
static bool numbers_differ(const json_t *recorded, const json_t *actual, const char *key,
                           const char *what, char *text, size_t size)
{
    const json_t *sides[] = {json_object_get(recorded, key), json_object_get(actual, key)};
    for (int i = 0; i < 2; i++) {
        const char *name;
        json_t *value;
        json_object_foreach((json_t *)(uintptr_t)sides[i], name, value)
        {
            const json_t *a = json_object_get(sides[0], name), *b = json_object_get(sides[1], name);
            if (json_equal(a, b))
                continue;
            snprintf(text, size, "%s %.40s: recorded %lld, here %lld", what, name,
                     (long long)json_integer_value(a), (long long)json_integer_value(b));
            return true;
        }
    }
    return false;
}

int machine_compare(const json_t *recorded, const json_t *actual, struct error *e)
{
    char text[400];
    bool differs =
        text_differs(recorded, actual, "machine", "machine type", text, sizeof(text)) ||
        text_differs(recorded, actual, "accelerator", "accelerator", text, sizeof(text)) ||
        numbers_differ(recorded, actual, "memory", "memory", text, sizeof(text)) ||
        numbers_differ(recorded, actual, "topology", "topology", text, sizeof(text)) ||
        machine_cpus_differ(json_object_get(recorded, "cpus"), json_object_get(actual, "cpus"),
                            text, sizeof(text)) ||
        machine_devices_differ(json_object_get(recorded, "devices"),
                               json_object_get(actual, "devices"), text, sizeof(text)) ||
        machine_pci_differ(json_object_get(recorded, "pci"), json_object_get(actual, "pci"), text,
                           sizeof(text));
    if (!differs)
        return 0;
    error_set(e, VMSNAP_EXIT_MISMATCH, 0, "the machine is not the one that was recorded: %s", text);
    error_hint(e,
               "start the VMM with the recorded hardware: `vmsnap restore --print-command IMAGE` "
               "shows the line");
    return -EINVAL;
}
