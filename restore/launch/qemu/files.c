#include "restore/launch/qemu/files.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "restore/launch/qemu/line.h"

/* Options whose whole value is a path, and those with a path under some keys. */
static const struct {
    const char *option;
    const char *keys[3]; /* none: the value */
    bool looked_up;      /* a bare name is QEMU's own file */
} places[] = {
    {"kernel", {NULL}, false},
    {"initrd", {NULL}, false},
    {"dtb", {NULL}, false},
    {"bios", {NULL}, true},
    {"pflash", {NULL}, false},
    {"cdrom", {NULL}, false},
    {"hda", {NULL}, false},
    {"hdb", {NULL}, false},
    {"hdc", {NULL}, false},
    {"hdd", {NULL}, false},
    {"fda", {NULL}, false},
    {"fdb", {NULL}, false},
    {"drive", {"file", "file.filename", NULL}, false},
    {"blockdev", {"filename", "file.filename", NULL}, false},
};

/* A disk's "nbd:..." or "json:..." is none; nor is the empty name of an empty drive. */
static bool is_plain_path(const char *path, bool looked_up)
{
    return path[0] == '/' || (path[0] && !looked_up && !strchr(path, ':'));
}

static bool is_missing(int directory, const char *path, bool looked_up)
{
    struct stat st;
    return is_plain_path(path, looked_up) && fstatat(directory, path, &st, 0) &&
           (errno == ENOENT || errno == ENOTDIR);
}

static bool look(int directory, const struct qemu_option *o, size_t place, char **missing)
{
    const char *const *keys = places[place].keys;
    if (!keys[0]) {
        if (!is_missing(directory, o->value, places[place].looked_up))
            return true;
        *missing = strdup(o->value);
        return false;
    }
    json_t *v = qemu_value_parse(o->value, "driver");
    bool found = true;
    for (; v && *keys && found; keys++) {
        const char *path = qemu_value_string(v, *keys);
        found = !path || !is_missing(directory, path, false);
        if (!found)
            *missing = strdup(path);
    }
    json_decref(v);
    return found;
}

bool qemu_files_exist(const struct relaunch *l, char **missing)
{
    struct qemu_line line = {0};
    CLEANUP_FD int directory = open(relaunch_directory(l), O_PATH | O_DIRECTORY | O_CLOEXEC);
    bool all = true;
    *missing = NULL;
    if (directory < 0) /* said by who looks for hazards */
        return true;
    if (l->recorded ? qemu_line_parse_at(&line, l->argv, 0) : qemu_line_parse(&line, l->argv))
        return true;
    for (size_t i = 0; all && i < line.n_options; i++)
        for (size_t k = 0; all && k < sizeof(places) / sizeof(places[0]); k++)
            if (line.options[i].value && qemu_option_is(&line.options[i], places[k].option))
                all = look(directory, &line.options[i], k, missing);
    qemu_line_free(&line);
    return all;
}
