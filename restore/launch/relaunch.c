#include "restore/launch/relaunch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"

#define DEFAULT_PATH "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

int relaunch_no_memory(struct error *e)
{
    return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "no memory for the command line");
}

int relaunch_bad_record(struct error *e, const char *what)
{
    error_set(e, VMSNAP_EXIT_IMAGE, EBADMSG, "the image records no usable %s", what);
    error_hint(e, "give the command line after --: vmsnap restore IMAGE -- VMM ARG...");
    return -EBADMSG;
}

int relaunch_add_word(struct relaunch *l, const char *word)
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

void relaunch_free_words(char **items)
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

int relaunch_begin(struct relaunch *out, const json_t *description, char *const *vmm_argv,
                   char ***recorded, struct error *e)
{
    const char *status = json_string_value(json_object_get(description, "status"));
    *out = (struct relaunch){.recorded = !vmm_argv,
                             .resumes = !status || strcmp(status, "running") == 0};
    *recorded = NULL;
    if (vmm_argv)
        return 0;
    int rc = take_record(out, json_object_get(description, "launch"), recorded);
    if (rc == -EBADMSG)
        relaunch_bad_record(e, "command line");
    else if (rc)
        relaunch_no_memory(e);
    return rc;
}

void relaunch_say_dropped(const char *word, const char *value, bool own)
{
    void (*say)(const char *fmt, ...) = own ? log_info : log_warn;
    if (value)
        say("not replayed: %s %s", word, value);
    else
        say("not replayed: %s", word);
}

bool relaunch_uses_terminal(const struct relaunch *l)
{
    for (size_t i = 0; i < l->argc; i++)
        if (strstr(l->argv[i], "stdio") || strcmp(l->argv[i], "-nographic") == 0 ||
            strstr(l->argv[i], "curses"))
            return true;
    return false;
}

/* Of a given line where "env -C" changes it, as --print-command has it. */
const char *relaunch_directory(const struct relaunch *l)
{
    if (l->cwd)
        return l->cwd;
    for (size_t i = 0; i + 2 < l->argc; i++)
        if (strcmp(l->argv[i], "env") == 0 && strcmp(l->argv[i + 1], "-C") == 0)
            return l->argv[i + 2];
    return ".";
}

bool relaunch_fd_inherited(int fd)
{
    int flags = fcntl(fd, F_GETFD);
    return flags >= 0 && !(flags & FD_CLOEXEC);
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

static void print_user(FILE *f, const struct relaunch *l)
{
    if (!l->as_user || (l->uid == geteuid() && l->gid == getegid()))
        return;
    fprintf(f, "setpriv --reuid=%u --regid=%u ", (unsigned)l->uid, (unsigned)l->gid);
    for (size_t i = 0; i < l->n_groups; i++)
        fprintf(f, "%s%u", i == 0 ? "--groups=" : ",", (unsigned)l->groups[i]);
    fputs(l->n_groups ? " " : "--clear-groups ", f);
}

static void print_directory(FILE *f, const struct relaunch *l)
{
    char here[PATH_MAX];
    if (!l->cwd || (getcwd(here, sizeof(here)) && strcmp(here, l->cwd) == 0))
        return;
    fputs("env -C ", f);
    print_quoted(f, l->cwd);
    fputc(' ', f);
}

static char *quote(const struct relaunch *l, bool with_start)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    if (!f)
        return NULL;
    if (with_start) {
        print_user(f, l);
        print_directory(f, l);
    }
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

char *relaunch_quote(const struct relaunch *l)
{
    return quote(l, false);
}

char *relaunch_quote_start(const struct relaunch *l)
{
    return quote(l, true);
}
