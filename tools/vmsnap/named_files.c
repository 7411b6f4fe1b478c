#include "tools/vmsnap/named_files.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define NAMED_MAX 16

struct named {
    char what[64]; /* as a usage error calls it: "--pidfile FILE" */
    const char *path;
    const char *base; /* the last part of `path`, for a file that does not exist */
    enum file_use use;
    bool exists;
    dev_t device; /* of the file, else of its directory */
    ino_t inode;
};

static bool find_directory(struct named *n, struct stat *st)
{
    char directory[PATH_MAX];
    const char *slash = strrchr(n->path, '/');
    n->base = slash ? slash + 1 : n->path;
    int len = (int)(n->base - n->path);
    if (len >= (int)sizeof(directory))
        return false;
    snprintf(directory, sizeof(directory), "%.*s", len, n->path);
    return stat(len ? directory : ".", st) == 0;
}

/* False: nothing that could be meant twice. */
static bool find_out(struct named *n)
{
    struct stat st;
    if (strcmp(n->path, "-") == 0)
        return false;
    n->exists = stat(n->path, &st) == 0;
    if (n->exists ? !S_ISREG(st.st_mode) : !find_directory(n, &st))
        return false;
    n->device = st.st_dev;
    n->inode = st.st_ino;
    return true;
}

static bool are_same(const struct named *a, const struct named *b)
{
    return a->exists == b->exists && a->device == b->device && a->inode == b->inode &&
           (a->exists || strcmp(a->base, b->base) == 0);
}

static int check_against(const struct named *n, const struct named *others, size_t count,
                         struct error *e)
{
    for (size_t i = 0; i < count; i++) {
        const struct named *o = &others[i];
        if ((n->use != FILE_WRITTEN && o->use != FILE_WRITTEN) || !are_same(n, o))
            continue;
        option_usage_error(e, "%s and %s name the same file, %s", o->what, n->what, n->path);
        error_hint(e, "it would be lost: name another one");
        return -EINVAL;
    }
    return 0;
}

/* Adds it to `found` unless it is one that is there already. */
static int add(struct named *found, size_t *count, const struct named *one, struct error *e)
{
    struct named n = *one;
    if (!n.path || n.use == FILE_NONE || *count == NAMED_MAX || !find_out(&n))
        return 0;
    if (check_against(&n, found, *count, e))
        return -EINVAL;
    found[(*count)++] = n;
    return 0;
}

int named_files_check(const struct command *command, const struct command_line *line,
                      struct error *e)
{
    struct named found[NAMED_MAX];
    size_t count = 0;
    int rc = 0;
    for (unsigned i = 0; rc == 0 && i < line->n_operands; i++) {
        const struct operand *o = &command->operands[i];
        struct named n = {.path = line->operand[i], .use = o->file};
        snprintf(n.what, sizeof(n.what), "%s", o->name);
        rc = add(found, &count, &n, e);
    }
    for (const struct option_spec *o = command->options; rc == 0 && o && o->name; o++) {
        struct named n = {.use = o->file};
        if (o->file == FILE_NONE)
            continue;
        assert(o->kind == OPTION_STRING);
        n.path = *o->to.string;
        snprintf(n.what, sizeof(n.what), "--%s", o->name);
        rc = add(found, &count, &n, e);
    }
    return rc;
}
