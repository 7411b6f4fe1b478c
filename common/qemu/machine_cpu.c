/*
 * QEMU loads the state of one CPU model into another without a word (tried: "max" into "qemu64"),
 * and the guest then meets instructions that its CPU no longer has. So what CPUID says is recorded:
 * the feature words as QEMU reports them (`feature-words` of each CPU object: after everything
 * that machine type, accelerator and host take away), and the numbers beside them.
 *
 * `feature-words` covers CPUID only. What a guest reads from MSRs instead is behind boolean
 * properties (vmx-*, hv-*, the bits of IA32_ARCH_CAPABILITIES); they are asked one by one, and only
 * when the CPU has what makes them visible: a qom-get costs 0.1 to 0.5 ms.
 */
#include "common/qemu/machine_cpu.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/qemu/cpu_names.h"

#define CPUS_MAX 4096u

static int unexpected(struct error *e, const char *what)
{
    return error_set(e, VMSNAP_EXIT_TARGET, EPROTO, "QEMU's answer about %s is not understood",
                     what);
}

/* "1.EDX", "7.0.EBX", "80000001.ECX": how a feature word is named in the image. */
static bool word_key(const json_t *word, char *key, size_t size)
{
    const json_t *eax = json_object_get(word, "cpuid-input-eax");
    const json_t *ecx = json_object_get(word, "cpuid-input-ecx");
    const char *reg = json_text(word, "cpuid-register", NULL);
    if (!json_is_integer(eax) || !reg)
        return false;
    char sub[16] = "";
    if (json_is_integer(ecx))
        snprintf(sub, sizeof(sub), ".%" PRIX32, (uint32_t)json_integer_value(ecx));
    int n = snprintf(key, size, "%" PRIX32 "%s.%s", (uint32_t)json_integer_value(eax), sub, reg);
    return n > 0 && (size_t)n < size;
}

/* Turns QEMU's list into {key: bits}, words without a bit left out. */
static json_t *pack_words(const json_t *list)
{
    json_t *words = json_object();
    size_t i;
    const json_t *w;
    json_array_foreach(list, i, w)
    {
        char key[48];
        json_t *bits = json_object_get(w, "features");
        if (!word_key(w, key, sizeof(key)) || !json_is_integer(bits)) {
            json_decref(words);
            return NULL;
        }
        if (json_integer_value(bits) != 0)
            json_object_set(words, key, bits);
    }
    return words;
}

static int describe_words(json_t *cpu, struct qom *m, const char *path, struct error *e)
{
    json_t *list = NULL;
    int r = qom_get_if_any(m, path, "feature-words", &list, e);
    if (r < 0 || !list)
        return r; /* not an x86 CPU */
    json_t *words = pack_words(list);
    json_decref(list);
    if (!words)
        return unexpected(e, "CPU features");
    return json_object_set_new(cpu, "words", words);
}

static int describe_values(json_t *to, struct qom *m, const char *path, const char *const *names,
                           struct error *e)
{
    for (; *names; names++) {
        json_t *value = NULL;
        int r = qom_get_if_any(m, path, *names, &value, e);
        if (r < 0)
            return r;
        if (value)
            json_object_set_new(to, *names, value);
    }
    return 0;
}

static bool word_has(const json_t *cpu, const char *key, unsigned bit)
{
    const json_t *word = json_object_get(json_object_get(cpu, "words"), key);
    return (json_integer_value(word) >> bit & 1) != 0;
}

/* The bits of IA32_ARCH_CAPABILITIES as QEMU names its properties. */
static bool is_arch_capability(const char *name)
{
    static const char *const names[] = {
        "rdctl-no", "ibrs-all",       "rsba",     "skip-l1dfl-vmentry", "ssb-no",   "mds-no",
        "taa-no",   "pschange-mc-no", "tsx-ctrl", "sbdr-ssdp-no",       "fbsdp-no", "psdp-no",
        "fb-clear", "gds-no",         "rfds-no",  "pbrsb-no",           "bhi-no",   "its-no"};
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (strcmp(names[i], name) == 0)
            return true;
    return false;
}

/* True when the property shows in an MSR or a hypervisor leaf of this CPU. */
static bool shows_elsewhere(const json_t *cpu, const char *name, bool kvm)
{
    if (strncmp(name, "vmx-", 4) == 0)
        return word_has(cpu, "1.ECX", 5);
    if (strncmp(name, "hv-", 3) == 0)
        return kvm;
    return is_arch_capability(name) && word_has(cpu, "7.0.EDX", 29);
}

/* Lists the boolean properties that are on and that no feature word shows. */
static int describe_features(json_t *cpu, struct qom *m, const char *path, bool kvm,
                             struct error *e)
{
    json_t *list = NULL, *features = json_array();
    size_t i;
    const json_t *p;
    json_object_set_new(cpu, "features", features);
    if (!kvm && !shows_elsewhere(cpu, "vmx-", kvm) && !shows_elsewhere(cpu, "rsba", kvm))
        return 0; /* the list alone takes 1.5 ms */
    int r = qom_list(m, path, &list, e);
    json_array_foreach(list, i, p)
    {
        const char *name = json_text(p, "name", "");
        if (strcmp(json_text(p, "type", ""), "bool") != 0 || !shows_elsewhere(cpu, name, kvm))
            continue;
        json_t *value = NULL;
        r = qom_get_if_any(m, path, name, &value, e);
        if (r < 0)
            break;
        if (json_is_true(value))
            json_array_append_new(features, json_string(name));
        json_decref(value);
    }
    json_decref(list);
    return r;
}

/* One CPU. `first`: with all that is the same for every CPU. */
static int describe_cpu(json_t *cpu, struct qom *m, const char *path, bool first, bool kvm,
                        struct error *e)
{
    static const char *const shared[] = {
        "vendor",  "family",    "model", "stepping", "model-id",     "level", "xlevel",
        "xlevel2", "phys-bits", "pmu",   "l3-cache", "legacy-cache", "kvm",   NULL};
    static const char *const own[] = {"apic-id", NULL}, *const plugged[] = {"hotplugged", NULL};
    json_t *identity = json_object();
    json_object_set_new(cpu, "identity", identity);
    int r = describe_words(cpu, m, path, e);
    if (r == 0)
        r = describe_values(identity, m, path, own, e);
    if (r == 0)
        r = describe_values(cpu, m, path, plugged, e);
    if (r == 0 && first)
        r = describe_values(identity, m, path, shared, e);
    if (r == 0 && first)
        r = describe_features(cpu, m, path, kvm, e);
    return r;
}

/* The QOM type of the CPU at `path`, from query-hotpluggable-cpus. */
static const char *type_at(const json_t *slots, const char *path)
{
    size_t i;
    const json_t *s;
    json_array_foreach(slots, i, s)
    {
        if (strcmp(json_text(s, "qom-path", ""), path) == 0)
            return json_text(s, "type", "");
    }
    return "";
}

static int describe_all(json_t *out, struct qom *m, const json_t *list, const json_t *slots,
                        bool kvm, struct error *e)
{
    if (json_array_size(list) == 0 || json_array_size(list) > CPUS_MAX)
        return unexpected(e, "its CPUs");
    size_t i;
    const json_t *c;
    json_array_foreach(list, i, c)
    {
        const char *path = json_text(c, "qom-path", "");
        json_t *cpu = json_object();
        json_array_append_new(out, cpu);
        json_object_set_new(cpu, "type", json_string(type_at(slots, path)));
        json_object_set(cpu, "place", json_object_get(c, "props"));
        int r = describe_cpu(cpu, m, path, i == 0, kvm, e);
        if (r < 0)
            return r;
    }
    return 0;
}

int machine_describe_cpus(json_t **out, struct qom *m, bool kvm, struct error *e)
{
    json_t *list = NULL, *slots = NULL, *cpus = json_array();
    int r = qom_ask(m, "query-cpus-fast", NULL, &list, e);
    if (r == 0)
        r = qom_ask(m, "query-hotpluggable-cpus", NULL, &slots, e);
    if (r == 0)
        r = describe_all(cpus, m, list, slots, kvm, e);
    json_decref(list);
    json_decref(slots);
    if (r < 0)
        json_decref(cpus);
    else
        *out = cpus;
    return r;
}

/* A value as text for a message. */
static void value_text(const json_t *value, char *out, size_t size)
{
    char *text = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    snprintf(out, size, "%.80s", text ? text : "nothing");
    free(text);
}

/* The first key whose values differ, or NULL. */
static const char *differing_key(const json_t *a, const json_t *b)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)a, key, value)
    {
        if (!json_equal(value, json_object_get(b, key)))
            return key;
    }
    json_object_foreach((json_t *)(uintptr_t)b, key, value)
    {
        if (!json_object_get(a, key))
            return key;
    }
    return NULL;
}

static bool words_differ(const json_t *recorded, const json_t *actual, char *text, size_t size)
{
    const char *key = differing_key(recorded, actual);
    if (!key)
        return false;
    uint64_t a = (uint64_t)json_integer_value(json_object_get(recorded, key));
    uint64_t b = (uint64_t)json_integer_value(json_object_get(actual, key));
    unsigned bit = a == b ? 0 : (unsigned)__builtin_ctzll(a ^ b);
    char name[64];
    cpu_feature_name(key, bit, name, sizeof(name));
    snprintf(text, size, "CPU feature %s: recorded %s, here %s", name, a >> bit & 1 ? "on" : "off",
             b >> bit & 1 ? "on" : "off");
    return true;
}

static bool has_text(const json_t *array, const char *text)
{
    size_t i;
    const json_t *t;
    json_array_foreach(array, i, t)
    {
        if (json_is_string(t) && strcmp(json_string_value(t), text) == 0)
            return true;
    }
    return false;
}

/* A name of `a` that `b` lacks. */
static const char *missing_in(const json_t *a, const json_t *b)
{
    size_t i;
    const json_t *t;
    json_array_foreach(a, i, t)
    {
        if (json_is_string(t) && !has_text(b, json_string_value(t)))
            return json_string_value(t);
    }
    return NULL;
}

static bool features_differ(const json_t *recorded, const json_t *actual, char *text, size_t size)
{
    const char *lost = missing_in(recorded, actual), *gained = missing_in(actual, recorded);
    if (lost)
        snprintf(text, size, "CPU feature %.60s: recorded on, here off", lost);
    else if (gained)
        snprintf(text, size, "CPU feature %.60s: recorded off, here on", gained);
    return lost || gained;
}

static bool objects_differ(const json_t *recorded, const json_t *actual, const char *what,
                           char *text, size_t size)
{
    const char *key = differing_key(recorded, actual);
    if (!key)
        return false;
    char a[96], b[96];
    value_text(json_object_get(recorded, key), a, sizeof(a));
    value_text(json_object_get(actual, key), b, sizeof(b));
    snprintf(text, size, "%s %.40s: recorded %s, here %s", what, key, a, b);
    return true;
}

static bool cpu_differs(const json_t *r, const json_t *a, char *text, size_t size)
{
    const char *type = json_text(r, "type", ""), *here = json_text(a, "type", "");
    if (strcmp(type, here) != 0) {
        snprintf(text, size, "CPU model: recorded %.60s, here %.60s", type, here);
        return true;
    }
    return objects_differ(json_object_get(r, "identity"), json_object_get(a, "identity"), "CPU",
                          text, size) ||
           words_differ(json_object_get(r, "words"), json_object_get(a, "words"), text, size) ||
           features_differ(json_object_get(r, "features"), json_object_get(a, "features"), text,
                           size) ||
           objects_differ(json_object_get(r, "place"), json_object_get(a, "place"), "CPU", text,
                          size);
}

bool machine_cpus_differ(const json_t *recorded, const json_t *actual, char *text, size_t size)
{
    if (json_array_size(recorded) != json_array_size(actual)) {
        snprintf(text, size, "number of CPUs: recorded %zu, here %zu", json_array_size(recorded),
                 json_array_size(actual));
        return true;
    }
    for (size_t i = 0; i < json_array_size(recorded); i++)
        if (cpu_differs(json_array_get(recorded, i), json_array_get(actual, i), text, size))
            return true;
    return false;
}
