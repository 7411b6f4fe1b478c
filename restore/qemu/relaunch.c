#include "restore/qemu/relaunch.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "restore/qemu/line.h"

#define DEFAULT_PATH "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static int no_memory(struct error *e)
{
    return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "no memory for the command line");
}

static int bad_record(struct error *e, const char *what)
{
    error_set(e, VMSNAP_EXIT_IMAGE, EBADMSG, "the image records no usable %s", what);
    error_hint(e, "give the command line after --: vmsnap restore IMAGE -- VMM ARG...");
    return -EBADMSG;
}

static int add_word(struct relaunch *l, const char *word)
{
    char **argv = realloc(l->argv, (l->argc + 2) * sizeof(*argv));
    if (!argv)
        return -ENOMEM;
    l->argv = argv;
    argv[l->argc] = strdup(word);
    if (!argv[l->argc])
        return -ENOMEM;
    argv[++l->argc] = NULL;
    return 0;
}

void relaunch_free(struct relaunch *l)
{
    for (size_t i = 0; i < l->argc; i++)
        free(l->argv[i]);
    for (size_t i = 0; l->environment && l->environment[i]; i++)
        free(l->environment[i]);
    free(l->argv);
    free(l->environment);
    free(l->executable);
    free(l->cwd);
    free(l->groups);
    *l = (struct relaunch){0};
}

/* ---- what can't be replayed ---- */

/* The QMP connection that an earlier restore added. */
static bool is_own_qmp(const struct qemu_option *o)
{
    const char *at = o->value ? strstr(o->value, "/" RELAUNCH_PRIVATE_PREFIX) : NULL;
    return qemu_option_is(o, "qmp") && at && strchr(at + 1, '/');
}

static const char *const not_replayed[] = {
    "S", "daemonize", "incoming", "loadvm", "preconfig", NULL,
};

/* `machine`: the versioned name; alone it is what we appended ourselves. */
static bool must_drop(const struct relaunch *l, const struct qemu_option *o, const char *machine)
{
    for (const char *const *p = not_replayed; *p; p++)
        if (qemu_option_is(o, *p))
            return true;
    /* It runs as the recorded user from the start, and can't change to that user again. */
    if (l->as_user && l->uid != 0 && qemu_option_is(o, "runas"))
        return true;
    return is_own_qmp(o) ||
           (qemu_option_is(o, "machine") && o->value && strcmp(o->value, machine) == 0);
}

/* Says what is dropped: aloud what a user wrote, with -v what an earlier restore added. */
static void say_dropped(const struct qemu_line *line, const struct qemu_option *o, bool own)
{
    void (*say)(const char *fmt, ...) = own ? log_info : log_warn;
    if (o->value)
        say("not replayed: %s %s", line->argv[o->at], o->value);
    else
        say("not replayed: %s", line->argv[o->at]);
}

static int copy_line(struct relaunch *l, const struct qemu_line *line, const char *machine)
{
    bool restored_before = false;
    for (size_t i = 0; i < line->n_options; i++)
        restored_before |= is_own_qmp(&line->options[i]);
    int rc = 0;
    for (size_t i = 0; i <= line->vmm && i < line->argc && rc == 0; i++)
        rc = add_word(l, line->argv[i]);
    for (size_t i = 0; i < line->n_options && rc == 0; i++) {
        const struct qemu_option *o = &line->options[i];
        if (must_drop(l, o, machine)) {
            say_dropped(line, o, restored_before);
            continue;
        }
        for (size_t j = 0; j < o->n_words && rc == 0; j++)
            rc = add_word(l, line->argv[o->at + j]);
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

/* ---- the record ---- */

static int copy_strings(char ***out, const json_t *array)
{
    size_t n = json_array_size(array);
    char **items = calloc(n + 1, sizeof(*items));
    if (!items)
        return -ENOMEM;
    *out = items;
    for (size_t i = 0; i < n; i++) {
        const char *text = json_string_value(json_array_get(array, i));
        if (!text)
            return -EBADMSG;
        items[i] = strdup(text);
        if (!items[i])
            return -ENOMEM;
    }
    return 0;
}

static void free_strings(char **items)
{
    for (size_t i = 0; items && items[i]; i++)
        free(items[i]);
    free(items);
}

/* Only what was recorded as needed, and a PATH for the helpers that QEMU starts. */
static int take_environment(struct relaunch *l, const json_t *environment)
{
    l->environment = calloc(json_object_size(environment) + 2, sizeof(*l->environment));
    if (!l->environment)
        return -ENOMEM;
    size_t n = 0;
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)environment, name, value)
    {
        if (!json_is_string(value) || strchr(name, '='))
            return -EBADMSG;
        if (asprintf(&l->environment[n], "%s=%s", name, json_string_value(value)) < 0) {
            l->environment[n] = NULL;
            return -ENOMEM;
        }
        n++;
    }
    if (!json_object_get(environment, "PATH")) {
        l->environment[n] = strdup(DEFAULT_PATH);
        if (!l->environment[n])
            return -ENOMEM;
    }
    return 0;
}

static int take_id(const json_t *record, const char *key, json_int_t *out)
{
    const json_t *v = json_object_get(record, key);
    *out = json_integer_value(v);
    return json_is_integer(v) && *out >= 0 && *out < UINT32_MAX ? 0 : -EBADMSG;
}

static int take_user(struct relaunch *l, const json_t *record)
{
    json_int_t uid, gid;
    const json_t *groups = json_object_get(record, "groups");
    if (take_id(record, "uid", &uid) || take_id(record, "gid", &gid) || !json_is_array(groups))
        return -EBADMSG;
    l->n_groups = json_array_size(groups);
    l->groups = calloc(l->n_groups + 1, sizeof(*l->groups));
    if (!l->groups)
        return -ENOMEM;
    for (size_t i = 0; i < l->n_groups; i++) {
        const json_t *g = json_array_get(groups, i);
        json_int_t value = json_integer_value(g);
        if (!json_is_integer(g) || value < 0 || value >= UINT32_MAX)
            return -EBADMSG;
        l->groups[i] = (gid_t)value;
    }
    l->as_user = true;
    l->uid = (uid_t)uid;
    l->gid = (gid_t)gid;
    return 0;
}

static int take_record(struct relaunch *l, const json_t *record, char ***argv)
{
    const char *executable = json_string_value(json_object_get(record, "executable"));
    const char *cwd = json_string_value(json_object_get(record, "cwd"));
    if (!executable || executable[0] != '/' || !cwd || cwd[0] != '/')
        return -EBADMSG;
    l->executable = strdup(executable);
    l->cwd = strdup(cwd);
    if (!l->executable || !l->cwd)
        return -ENOMEM;
    int rc = take_environment(l, json_object_get(record, "environment"));
    if (rc == 0)
        rc = take_user(l, record);
    if (rc == 0)
        rc = copy_strings(argv, json_object_get(record, "argv"));
    return rc == 0 && !(*argv)[0] ? -EBADMSG : rc;
}

int relaunch_plan(struct relaunch *out, const json_t *description, char *const *vmm_argv,
                  struct error *e)
{
    const char *status = json_string_value(json_object_get(description, "status"));
    *out = (struct relaunch){.recorded = !vmm_argv,
                             .resumes = !status || strcmp(status, "running") == 0};
    const char *machine = json_string_value(json_object_get(description, "machine"));
    if (!machine)
        return bad_record(e, "machine type");
    char **recorded = NULL;
    int rc = 0;
    if (!vmm_argv)
        rc = take_record(out, json_object_get(description, "launch"), &recorded);
    struct qemu_line line = {0};
    if (rc == 0)
        /* A recorded line has no wrapper: its first word is the VMM, whatever it is called. */
        rc = vmm_argv ? qemu_line_parse(&line, vmm_argv) : qemu_line_parse_at(&line, recorded, 0);
    if (rc == -EBADMSG)
        bad_record(e, "command line");
    else if (rc)
        no_memory(e);
    if (rc == 0)
        rc = check_machine(&line, machine, e);
    if (rc == 0) {
        rc = copy_line(out, &line, machine);
        if (rc == 0)
            rc = add_word(out, "-machine");
        if (rc == 0)
            rc = add_word(out, machine);
        if (rc)
            no_memory(e);
    }
    qemu_line_free(&line);
    free_strings(recorded);
    if (rc)
        relaunch_free(out);
    return rc;
}

int relaunch_add_private(struct relaunch *l, const char *socket_path, struct error *e)
{
    CLEANUP_FREE char *qmp = NULL;
    if (asprintf(&qmp, "unix:%s", socket_path) < 0) {
        qmp = NULL;
        return no_memory(e);
    }
    const char *const words[] = {"-S", "-incoming", "defer", "-qmp", qmp};
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (add_word(l, words[i]))
            return no_memory(e);
    return 0;
}

bool relaunch_uses_terminal(const struct relaunch *l)
{
    for (size_t i = 0; i < l->argc; i++)
        if (strstr(l->argv[i], "stdio") || strcmp(l->argv[i], "-nographic") == 0 ||
            strstr(l->argv[i], "curses"))
            return true;
    return false;
}

/* ---- quoting ---- */

static bool is_plain(const char *word)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "_-./:,=+@%^";
    return word[0] && word[strspn(word, plain)] == '\0';
}

/* How many bytes from `p` on a terminal would take as a command: C0, DEL, or C1 in UTF-8. */
static size_t count_control(const char *p)
{
    const unsigned char *u = (const unsigned char *)p;
    if (u[0] == 0xc2 && u[1] >= 0x80 && u[1] < 0xa0)
        return 2;
    return (u[0] > 0 && u[0] < 0x20) || u[0] == 0x7f;
}

static bool has_control(const char *word)
{
    for (; *word; word++)
        if (count_control(word))
            return true;
    return false;
}

/* $'it\'s \x1b': what the line says must be seen before it is trusted. */
static void print_escaped(FILE *f, const char *word)
{
    fputs("$'", f);
    while (*word) {
        size_t n = count_control(word);
        for (size_t i = 0; i < n; i++)
            fprintf(f, "\\x%02x", (unsigned char)*word++);
        if (n > 0)
            continue;
        if (*word == '\'' || *word == '\\')
            fputc('\\', f);
        fputc(*word++, f);
    }
    fputc('\'', f);
}

/* 'it'\''s' */
static void print_quoted(FILE *f, const char *word)
{
    if (is_plain(word)) {
        fputs(word, f);
        return;
    }
    if (has_control(word)) {
        print_escaped(f, word);
        return;
    }
    fputc('\'', f);
    for (const char *p = word; *p; p++) {
        if (*p == '\'')
            fputs("'\\''", f);
        else
            fputc(*p, f);
    }
    fputc('\'', f);
}

char *relaunch_quote(const struct relaunch *l)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    if (!f)
        return NULL;
    for (size_t i = 0; i < l->argc; i++) {
        if (i > 0)
            fputc(' ', f);
        print_quoted(f, i == 0 && l->executable ? l->executable : l->argv[i]);
    }
    if (fclose(f)) {
        free(text);
        return NULL;
    }
    return text;
}
