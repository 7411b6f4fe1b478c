#include "restore/launch/qemu/plan.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "restore/launch/qemu/line.h"

/* ---- what can't be replayed ---- */

/* The QMP connection that an earlier restore added. */
static bool is_own_qmp(const struct qemu_option *o)
{
    const char *at = o->value ? strstr(o->value, "/" RELAUNCH_PRIVATE_PREFIX) : NULL;
    return qemu_option_is(o, "qmp") && at && strchr(at + 1, '/');
}

/* `machine`: the versioned name; alone it is what we appended ourselves, or
 * printed for the user. */
static bool is_own_machine(const struct qemu_option *o, const char *machine)
{
    return qemu_option_is(o, "machine") && o->value && strcmp(o->value, machine) == 0;
}

static const char *const not_replayed[] = {
    "S", "daemonize", "incoming", "loadvm", "preconfig", NULL,
};

static bool must_drop(const struct relaunch *l, const struct qemu_option *o, const char *machine)
{
    for (const char *const *p = not_replayed; *p; p++)
        if (qemu_option_is(o, *p))
            return true;
    /* It runs as the recorded user from the start, and can't change to that user again. */
    if (l->as_user && l->uid != 0 && qemu_option_is(o, "runas"))
        return true;
    return is_own_qmp(o) || is_own_machine(o, machine);
}

static int copy_line(struct relaunch *l, const struct qemu_line *line, const char *machine)
{
    bool restored_before = false;
    for (size_t i = 0; i < line->n_options; i++)
        restored_before |= is_own_qmp(&line->options[i]);
    int rc = 0;
    for (size_t i = 0; i <= line->vmm && i < line->argc && rc == 0; i++)
        rc = relaunch_add_word(l, line->argv[i]);
    for (size_t i = 0; i < line->n_options && rc == 0; i++) {
        const struct qemu_option *o = &line->options[i];
        if (must_drop(l, o, machine)) {
            relaunch_say_dropped(line->argv[o->at], o->value,
                                 restored_before || is_own_machine(o, machine));
            continue;
        }
        for (size_t j = 0; j < o->n_words && rc == 0; j++)
            rc = relaunch_add_word(l, line->argv[o->at + j]);
    }
    return rc;
}

/* ---- the machine type ---- */

/* Whether a name on the line can mean the recorded versioned machine: itself, or the alias of its
 * kind (pc, q35, virt: QEMU's aliases for its newest version, which need not be the recorded). */
static bool machine_name_fits(const char *name, const char *machine)
{
    if (strcmp(name, machine) == 0)
        return true;
    const char *kind = strcmp(name, "pc") == 0    ? "pc-i440fx"
                       : strcmp(name, "q35") == 0 ? "pc-q35"
                                                  : name;
    size_t len = strlen(kind);
    return strncmp(machine, kind, len) == 0 && machine[len] == '-';
}

static int check_machine(const struct qemu_line *line, const char *machine, struct error *e)
{
    int rc = 0;
    for (size_t i = 0; i < line->n_options && rc == 0; i++) {
        const struct qemu_option *o = &line->options[i];
        if (!o->value || !(qemu_option_is(o, "machine") || qemu_option_is(o, "M")))
            continue;
        json_t *v = qemu_value_parse(o->value, "type");
        const char *name = v ? qemu_value_string(v, "type") : NULL;
        if (name && !machine_name_fits(name, machine)) {
            rc =
                error_set(e, VMSNAP_EXIT_MISMATCH, 0,
                          "machine type: recorded %s, but the command line says %s", machine, name);
            error_hint(e, "say -machine %s, with the options it had", machine);
        }
        json_decref(v);
    }
    return rc;
}

int qemu_plan(struct relaunch *out, const json_t *description, char *const *vmm_argv,
              struct error *e)
{
    char **recorded = NULL;
    const char *machine = json_string_value(json_object_get(description, "machine"));
    *out = (struct relaunch){0};
    if (!machine)
        return relaunch_bad_record(e, "machine type");
    int rc = relaunch_begin(out, description, vmm_argv, &recorded, e);
    struct qemu_line line = {0};
    if (rc == 0) {
        /* A recorded line has no wrapper: its first word is the VMM, whatever it is called. */
        rc = vmm_argv ? qemu_line_parse(&line, vmm_argv) : qemu_line_parse_at(&line, recorded, 0);
        if (rc)
            relaunch_no_memory(e);
    }
    if (rc == 0)
        rc = check_machine(&line, machine, e);
    if (rc == 0) {
        rc = copy_line(out, &line, machine);
        if (rc == 0)
            rc = relaunch_add_word(out, "-machine");
        if (rc == 0)
            rc = relaunch_add_word(out, machine);
        if (rc)
            relaunch_no_memory(e);
    }
    qemu_line_free(&line);
    relaunch_free_words(recorded);
    if (rc)
        relaunch_free(out);
    return rc;
}

int qemu_add_private(struct relaunch *l, const char *socket_path, struct error *e)
{
    CLEANUP_FREE char *qmp = NULL;
    if (asprintf(&qmp, "unix:%s", socket_path) < 0) {
        qmp = NULL;
        return relaunch_no_memory(e);
    }
    const char *const words[] = {"-S", "-incoming", "defer", "-qmp", qmp};
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (relaunch_add_word(l, words[i]))
            return relaunch_no_memory(e);
    return 0;
}
