#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/qemu/cpu_names.h"
#include "common/qemu/machine.h"

/* A machine as machine_describe() writes it, cut down. */
static const char machine_text[] =
    "{'machine': 'pc-i440fx-7.2', 'accelerator': 'tcg', 'vm_name': 'web', 'vmm_version': '7.2.22',"
    " 'memory': {'size': 536870912}, 'topology': {'cpus': 2, 'cores': 2, 'sockets': 1},"
    " 'cpus': [{'type': 'max-x86_64-cpu', 'hotplugged': false,"
    "           'place': {'socket-id': 0, 'core-id': 0}, 'words': {'7.0.EBX': 43, '1.EDX': 5},"
    "           'identity': {'vendor': 'GenuineIntel', 'model': 6, 'apic-id': 0},"
    "           'features': ['hv-time']},"
    "          {'type': 'max-x86_64-cpu', 'hotplugged': true,"
    "           'place': {'socket-id': 0, 'core-id': 1}, 'words': {'7.0.EBX': 43, '1.EDX': 5},"
    "           'identity': {'apic-id': 1}}],"
    " 'devices': [{'path': '/machine/peripheral/n0', 'type': 'e1000', 'id': 'n0',"
    "              'place': 'pci.0/03.0', 'hotplugged': false},"
    "             {'path': '/machine/peripheral/r0', 'type': 'virtio-rng-pci', 'id': 'r0',"
    "              'hotplugged': true},"
    "             {'path': '/machine/unattached/device[1]', 'type': 'isa-serial'},"
    "             {'path': '/machine/unattached/device[2]', 'type': 'isa-serial'}],"
    " 'pci': [{'place': '00:00.0', 'vendor': 32902, 'device': 4663},"
    "         {'place': '00:03.0', 'vendor': 32902, 'device': 4110}]}";

static json_t *parse(const char *text)
{
    char *copy = strdup(text);
    for (char *p = copy; *p; p++)
        *p = *p == '\'' ? '"' : *p;
    json_t *v = json_loads(copy, 0, NULL);
    free(copy);
    cr_assert_not_null(v, "%s", text);
    return v;
}

/* The machine's text with one piece replaced. */
static json_t *changed(const char *from, const char *to)
{
    char text[sizeof(machine_text) + 256];
    const char *at = strstr(machine_text, from);
    cr_assert_not_null(at, "%s", from);
    snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - machine_text), machine_text, to,
             at + strlen(from));
    return parse(text);
}

/* Compares the machine with a changed one, both ways; each time the message must name it. */
static void differs(const char *from, const char *to, const char *name)
{
    json_t *recorded = parse(machine_text), *actual = changed(from, to);
    for (int i = 0; i < 2; i++) {
        struct error e = {0};
        int r = i ? machine_compare(actual, recorded, &e) : machine_compare(recorded, actual, &e);
        cr_assert_eq(r, -EINVAL, "%s", to);
        cr_assert_eq(e.exit_code, VMSNAP_EXIT_MISMATCH);
        cr_assert(strstr(e.message, name), "\"%s\" not in \"%s\"", name, e.message);
        cr_assert_gt(strlen(e.hint), 0);
    }
    json_decref(recorded);
    json_decref(actual);
}

/* A change that the guest can't see. */
static void same(const char *from, const char *to)
{
    json_t *recorded = parse(machine_text), *actual = changed(from, to);
    struct error e = {0};
    cr_assert_eq(machine_compare(recorded, actual, &e), 0, "%s", e.message);
    json_decref(recorded);
    json_decref(actual);
}

Test(machine, differences_are_named)
{
    differs("pc-i440fx-7.2", "pc-q35-7.2", "machine type: recorded");
    differs("'tcg'", "'kvm'", "accelerator: recorded");
    differs("536870912", "1073741824", "memory size");
    differs("'cores': 2", "'cores': 1", "topology cores");
    differs("'sockets': 1}", "'sockets': 1, 'dies': 2}", "topology dies");
    differs("'type': 'max-x86_64-cpu', 'hotplugged': false",
            "'type': 'qemu64-x86_64-cpu', 'hotplugged': false", "CPU model");
    differs("'7.0.EBX': 43, '1.EDX': 5},           'identity': {'vendor'",
            "'7.0.EBX': 11, '1.EDX': 5},           'identity': {'vendor'", "CPU feature avx2");
}

Test(machine, each_cpu_counts)
{
    differs("'7.0.EBX': 43, '1.EDX': 5},           'identity': {'apic-id': 1",
            "'7.0.EBX': 43, '1.EDX': 7},           'identity': {'apic-id': 1", "CPU feature vme");
    differs("'apic-id': 1", "'apic-id': 2", "CPU apic-id");
    differs("'core-id': 1", "'core-id': 3", "CPU core-id");
    differs("GenuineIntel", "AuthenticAMD", "CPU vendor");
    differs("['hv-time']", "[]", "CPU feature hv-time");
    differs("['hv-time']", "['hv-time', 'vmx-ept']", "CPU feature vmx-ept");
}

Test(machine, devices_count)
{
    differs("'type': 'e1000'", "'type': 'rtl8139'", "device");
    differs("             {'path': '/machine/unattached/device[1]', 'type': 'isa-serial'},", "",
            "device isa-serial");
    differs("pci.0/03.0", "pci.0/04.0", "device e1000 (id n0) at pci.0/0");
    /* One device less, and another one moves to its place: the first is the one to name. */
    differs("{'path': '/machine/peripheral/n0', 'type': 'e1000', 'id': 'n0',"
            "              'place': 'pci.0/03.0', 'hotplugged': false},"
            "             {'path': '/machine/peripheral/r0', 'type': 'virtio-rng-pci', 'id': 'r0',"
            "              'hotplugged': true}",
            "{'type': 'virtio-rng-pci', 'id': 'r0', 'place': 'pci.0/03.0', 'hotplugged': true}",
            "device e1000 (id n0) at pci.0/03.0");
    differs("'00:03.0'", "'00:04.0'", "PCI device 8086:100e at 00:0");
    differs("4110", "4111", "PCI device 8086:10");
}

Test(machine, what_the_guest_cannot_see)
{
    same("'web'", "'other'");
    same("7.2.22", "7.2.23");
    same("'id': 'n0'", "'id': 'net0'");
    same("'hotplugged': true}", "'hotplugged': false}");
    same("device[1]', 'type'", "device[7]', 'type'");
}

/* The recorded side comes from a file. */
Test(machine, recorded_side_may_be_anything)
{
    static const char *const texts[] = {
        "{}",
        "[]",
        "{'machine': 5, 'cpus': {}, 'devices': 'x', 'pci': null}",
        "{'machine': 'pc-i440fx-7.2', 'accelerator': 'tcg', 'memory': [], 'topology': 7}",
        "{'machine': 'pc-i440fx-7.2', 'accelerator': 'tcg', 'memory': {'size': 536870912},"
        " 'topology': {'cpus': 2, 'cores': 2, 'sockets': 1}, 'cpus': [[], 5]}",
        "{'machine': 'pc-i440fx-7.2', 'accelerator': 'tcg', 'memory': {'size': 536870912},"
        " 'topology': {'cpus': 2, 'cores': 2, 'sockets': 1},"
        " 'cpus': [{'type': 'max-x86_64-cpu', 'words': {'7.0.EBX': 'x', '1.EDX': -1}}, {}]}",
    };
    json_t *actual = parse(machine_text);
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
        struct error e = {0};
        json_t *recorded = parse(texts[i]);
        cr_assert_eq(machine_compare(recorded, actual, &e), -EINVAL, "%s", texts[i]);
        cr_assert_eq(e.exit_code, VMSNAP_EXIT_MISMATCH);
        json_decref(recorded);
    }
    json_decref(actual);
}

Test(machine, hotplugged_devices_are_named)
{
    json_t *m = parse(machine_text);
    char *text = machine_hotplugged(m);
    cr_assert_str_eq(text, "virtio-rng-pci (id r0), max-x86_64-cpu");
    free(text);
    json_object_del(m, "cpus");
    json_object_del(m, "devices");
    cr_assert_null(machine_hotplugged(m));
    json_decref(m);
}

static void named(const char *word, unsigned bit, const char *name)
{
    char text[64];
    cpu_feature_name(word, bit, text, sizeof(text));
    cr_assert_str_eq(text, name);
}

Test(machine, cpu_feature_names)
{
    named("1.EDX", 0, "fpu");
    named("1.EDX", 31, "pbe");
    named("1.ECX", 31, "hypervisor");
    named("1.ECX", 5, "vmx");
    named("7.0.EBX", 5, "avx2");
    named("7.0.EBX", 31, "avx512vl");
    named("7.0.ECX", 31, "pks");
    named("7.0.EDX", 29, "arch-capabilities");
    named("7.0.EDX", 31, "ssbd");
    named("80000001.EDX", 29, "lm");
    named("80000001.ECX", 24, "perfctr-nb");
    named("80000008.EBX", 25, "virt-ssbd");
    named("40000001.EAX", 24, "kvmclock-stable-bit");
    named("80000001.ECX", 30, "CPUID 80000001.ECX bit 30");
    named("1.EDX", 10, "CPUID 1.EDX bit 10");
    named("1.EDX", 63, "CPUID 1.EDX bit 63");
    named("99.EAX", 1, "CPUID 99.EAX bit 1");
}
