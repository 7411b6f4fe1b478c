#include "restore/launch/qemu/line.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

/* The options of QEMU 5.2 to 10.2 that take no value (qemu-options.hx: those without HAS_ARG). All
 * others take one. */
static const char *const without_value[] = {
    "S",
    "alt-grab",
    "async-teardown",
    "ctrl-grab",
    "curses",
    "daemonize",
    "enable-fips",
    "enable-kvm",
    "enable-sync-profile",
    "full-screen",
    "gtk",
    "h",
    "help",
    "mem-prealloc",
    "no-acpi",
    "no-fd-bootchk",
    "no-frame",
    "no-hpet",
    "no-quit",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nodefconfig",
    "nographic",
    "nouserconfig",
    "old-param",
    "one-insn-per-tb",
    "only-migratable",
    "portrait",
    "preconfig",
    "s",
    "sdl",
    "semihosting",
    "show-cursor",
    "singlestep",
    "snapshot",
    "usb",
    "version",
    "win2k-hack",
    "xen-attach",
    "xen-domid-restrict",
    NULL,
};

static bool takes_value(const char *name)
{
    for (const char *const *p = without_value; *p; p++)
        if (strcmp(*p, name) == 0)
            return false;
    return true;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static bool is_vmm_name(const char *word)
{
    const char *name = base_name(word);
    return strncmp(name, "qemu-system-", 12) == 0 || strcmp(name, "qemu-kvm") == 0 ||
           strcmp(name, "kvm") == 0;
}

/* The first word that names a QEMU, and no directory of `env -C`; a line that has none has no
 * wrapper either. */
static size_t find_vmm(char *const *argv)
{
    for (size_t i = 0; argv[i]; i++)
        if (is_vmm_name(argv[i]) && (i == 0 || strcmp(argv[i - 1], "-C") != 0))
            return i;
    return 0;
}

int qemu_line_parse(struct qemu_line *out, char *const *argv)
{
    return qemu_line_parse_at(out, argv, find_vmm(argv));
}

int qemu_line_parse_at(struct qemu_line *out, char *const *argv, size_t vmm)
{
    *out = (struct qemu_line){.argv = argv, .vmm = vmm};
    while (argv[out->argc])
        out->argc++;
    out->options = calloc(out->argc + 1, sizeof(*out->options));
    if (!out->options)
        return -ENOMEM;
    for (size_t i = out->vmm + 1; i < out->argc;) {
        struct qemu_option *o = &out->options[out->n_options++];
        const char *word = argv[i];
        *o = (struct qemu_option){.at = i, .n_words = 1, .name = "", .value = word};
        if (word[0] == '-' && word[1]) {
            o->name = word + (word[1] == '-' ? 2 : 1);
            o->value = NULL;
            if (takes_value(o->name) && i + 1 < out->argc) {
                o->value = argv[i + 1];
                o->n_words = 2;
            }
        }
        i += o->n_words;
    }
    return 0;
}

void qemu_line_free(struct qemu_line *line)
{
    free(line->options);
    *line = (struct qemu_line){0};
}

bool qemu_option_is(const struct qemu_option *o, const char *name)
{
    return strcmp(o->name, name) == 0;
}

/* One item of "a=b,c=d" up to its unescaped comma, unescaped: the caller's to free. *p moves on. */
static char *take_item(const char **p)
{
    char *out = malloc(strlen(*p) + 1);
    if (!out)
        return NULL;
    size_t n = 0;
    const char *s = *p;
    for (; *s; s++) {
        if (*s == ',' && s[1] != ',')
            break;
        if (*s == ',')
            s++;
        out[n++] = *s;
    }
    out[n] = '\0';
    *p = *s ? s + 1 : s;
    return out;
}

static void set(json_t *object, const char *key, const char *text)
{
    json_object_set_new_nocheck(object, key, json_string_nocheck(text));
}

static void set_item(json_t *object, char *item, bool first, const char *implied)
{
    char *equals = strchr(item, '=');
    if (equals) {
        *equals = '\0';
        set(object, item, equals + 1);
    } else if (first && implied) {
        set(object, implied, item);
    } else if (item[0] == 'n' && item[1] == 'o' && item[2]) {
        set(object, item + 2, "off");
    } else if (item[0]) {
        set(object, item, "on");
    }
}

json_t *qemu_value_parse(const char *value, const char *implied)
{
    if (value[0] == '{') {
        json_t *parsed = json_loads(value, 0, NULL);
        if (json_is_object(parsed))
            return parsed;
        json_decref(parsed); /* QEMU will say what is wrong with it */
        return json_object();
    }
    json_t *object = json_object();
    for (bool first = true; object && *value; first = false) {
        CLEANUP_FREE char *item = take_item(&value);
        if (!item) {
            json_decref(object);
            return NULL;
        }
        set_item(object, item, first, implied);
    }
    return object;
}

/* Finds "a.b.c" in nested objects, or the flat key "a.b.c". */
static const json_t *find(const json_t *object, const char *key)
{
    const json_t *flat = json_object_get(object, key);
    const char *dot = strchr(key, '.');
    if (flat || !dot)
        return flat;
    CLEANUP_FREE char *outer = strndup(key, (size_t)(dot - key));
    const json_t *inner = outer ? json_object_get(object, outer) : NULL;
    return json_is_object(inner) ? find(inner, dot + 1) : NULL;
}

const char *qemu_value_string(const json_t *object, const char *key)
{
    return json_string_value(find(object, key));
}

bool qemu_value_switch(const json_t *object, const char *key, bool otherwise)
{
    static const char *const on[] = {"on", "yes", "true", "y"};
    static const char *const off[] = {"off", "no", "false", "n"};
    const json_t *v = find(object, key);
    if (json_is_boolean(v))
        return json_is_true(v);
    const char *text = json_string_value(v);
    for (size_t i = 0; text && i < sizeof(on) / sizeof(on[0]); i++) {
        if (strcmp(text, on[i]) == 0)
            return true;
        if (strcmp(text, off[i]) == 0)
            return false;
    }
    return otherwise;
}
