#include "common/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"

/* The kernel takes no longer command line or environment than a quarter of the stack limit, by
 * default 2 MiB. */
#define PROC_FILE_MAX_BYTES (8u << 20)

const char *const *launch_environment_names(void)
{
    static const char *const names[] = {"HOME",   "PATH", "QEMU_AUDIO_DRV",  "QEMU_MODULE_DIR",
                                        "TMPDIR", "TZ",   "XDG_RUNTIME_DIR", NULL};
    return names;
}

static int cannot_read(const struct target *t, const char *what, int err, struct error *e)
{
    return error_set(e, VMSNAP_EXIT_TARGET, err, "process %d: cannot read its %s", (int)t->pid,
                     what);
}

/* A whole file of /proc/PID, with a NUL added. */
static int read_proc_file(const struct target *t, const char *name, char **out, size_t *len,
                          struct error *e)
{
    CLEANUP_FD int fd = openat(t->proc_fd, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return cannot_read(t, name, errno, e);
    CLEANUP_FREE char *buf = NULL;
    size_t used = 0, capacity = 0;
    for (;;) {
        if (capacity - used < 4096) {
            capacity = capacity ? capacity * 2 : 16384;
            char *grown = capacity <= PROC_FILE_MAX_BYTES ? realloc(buf, capacity) : NULL;
            if (!grown)
                return cannot_read(t, name, capacity <= PROC_FILE_MAX_BYTES ? ENOMEM : E2BIG, e);
            buf = grown;
        }
        ssize_t n = read(fd, buf + used, capacity - used - 1);
        if (n < 0)
            return cannot_read(t, name, errno, e);
        if (n == 0)
            break;
        used += (size_t)n;
    }
    buf[used] = '\0';
    *out = take_ptr(&buf);
    *len = used;
    return 0;
}

/* Where a link of /proc/PID points to. */
static int read_proc_link(const struct target *t, const char *name, char *out, size_t size)
{
    ssize_t n = readlinkat(t->proc_fd, name, out, size - 1);
    if (n < 0)
        return -errno;
    if ((size_t)n >= size - 1)
        return -ENAMETOOLONG;
    out[n] = '\0';
    return 0;
}

/* Appends NUL-terminated texts to an array. -EILSEQ: not UTF-8. */
static int add_texts(json_t *to, const char *bytes, size_t len)
{
    for (size_t at = 0; at < len; at += strlen(bytes + at) + 1)
        if (json_array_append_new(to, json_string(bytes + at)) < 0)
            return -EILSEQ;
    return 0;
}

static int describe_argv(json_t *launch, const struct target *t, struct error *e)
{
    CLEANUP_FREE char *text = NULL;
    size_t len = 0;
    int r = read_proc_file(t, "cmdline", &text, &len, e);
    if (r < 0)
        return r;
    json_t *argv = json_array();
    json_object_set_new(launch, "argv", argv);
    r = add_texts(argv, text, len);
    if (r < 0 || json_array_size(argv) == 0)
        return cannot_read(t, "command line (bytes that are not UTF-8?)", r ? -r : ESRCH, e);
    return 0;
}

static int describe_link(json_t *launch, const struct target *t, const char *name, const char *key,
                         struct error *e)
{
    char path[PATH_MAX];
    int r = read_proc_link(t, name, path, sizeof(path));
    if (r == 0 && json_object_set_new(launch, key, json_string(path)) < 0)
        r = -EILSEQ;
    return r < 0 ? cannot_read(t, key, -r, e) : 0;
}

/* The numbers of a line of /proc/PID/status, e.g. "Uid:\t0\t0\t0\t0". */
static json_t *status_numbers(const char *status, const char *key)
{
    const char *line = strstr(status, key);
    json_t *numbers = json_array();
    if (!line)
        return numbers;
    line += strlen(key);
    for (;;) {
        line += strspn(line, " \t");
        if (*line < '0' || *line > '9')
            return numbers;
        json_array_append_new(numbers, json_integer(strtoll(line, (char **)&line, 10)));
    }
}

static int describe_user(json_t *launch, const struct target *t, struct error *e)
{
    CLEANUP_FREE char *status = NULL;
    size_t len;
    int r = read_proc_file(t, "status", &status, &len, e);
    if (r < 0)
        return r;
    json_t *uids = status_numbers(status, "\nUid:"), *gids = status_numbers(status, "\nGid:");
    /* real, effective, saved, file system */
    if (json_array_size(uids) != 4 || json_array_size(gids) != 4)
        r = cannot_read(t, "user and group", EPROTO, e);
    json_object_set(launch, "uid", json_array_get(uids, 1));
    json_object_set(launch, "gid", json_array_get(gids, 1));
    json_object_set_new(launch, "groups", status_numbers(status, "\nGroups:"));
    json_decref(uids);
    json_decref(gids);
    return r;
}

static int describe_environment(json_t *launch, const struct target *t, struct error *e)
{
    CLEANUP_FREE char *text = NULL;
    size_t len;
    int r = read_proc_file(t, "environ", &text, &len, e);
    if (r < 0)
        return r;
    json_t *environment = json_object();
    json_object_set_new(launch, "environment", environment);
    for (size_t at = 0; at < len; at += strlen(text + at) + 1) {
        const char *equals = strchr(text + at, '=');
        for (const char *const *n = launch_environment_names(); equals && *n; n++)
            if (strlen(*n) == (size_t)(equals - (text + at)) &&
                memcmp(*n, text + at, strlen(*n)) == 0 &&
                json_object_set_new(environment, *n, json_string(equals + 1)) < 0)
                return cannot_read(t, "environment", EILSEQ, e);
    }
    return 0;
}

/* Records descriptor number `fd` that `option` names. */
static int add_fd(json_t *fds, const struct target *t, const char *option, long fd)
{
    char link[32], path[PATH_MAX];
    snprintf(link, sizeof(link), "fd/%ld", fd);
    if (read_proc_link(t, link, path, sizeof(path)) < 0)
        snprintf(path, sizeof(path), "(closed)"); /* QEMU, for one, closes what it has duplicated */
    json_t *one =
        json_pack("{s:s, s:I, s:s}", "option", option, "fd", (json_int_t)fd, "target", path);
    return json_array_append_new(fds, one) < 0 ? -EILSEQ : 0;
}

int launch_add_fds(json_t *fds, const struct target *t, const char *option, const char *value)
{
    for (;;) {
        char *end;
        long fd = strtol(value, &end, 10);
        if (end == value || fd < 0 || fd > INT_MAX)
            return 0;
        int r = add_fd(fds, t, option, fd);
        if (r < 0 || *end != ':')
            return r;
        value = end + 1;
    }
}

int launch_scan_paths(json_t *fds, const struct target *t, const char *option, const char *text)
{
    static const char *const prefixes[] = {"fd:", "/dev/fd/", "/proc/self/fd/"};
    for (size_t i = 0; i < sizeof(prefixes) / sizeof(*prefixes); i++) {
        const char *hit = strstr(text, prefixes[i]);
        if (hit && (i > 0 || hit == text)) {
            int r = launch_add_fds(fds, t, option, hit + strlen(prefixes[i]));
            if (r < 0)
                return r;
        }
    }
    return 0;
}

static int describe_fds(json_t *launch, const struct target *t, launch_scan *scan, struct error *e)
{
    json_t *fds = json_array();
    json_object_set_new(launch, "fds", fds);
    const json_t *argv = json_object_get(launch, "argv");
    const char *option = "";
    for (size_t i = 1; i < json_array_size(argv); i++) {
        const char *text = json_string_value(json_array_get(argv, i));
        if (text[0] == '-') {
            option = text[1] == '-' ? text + 1 : text; /* mostly both are taken */
            continue;
        }
        int r = scan(fds, t, option, text);
        if (r < 0)
            return cannot_read(t, "inherited descriptors", -r, e);
    }
    return 0;
}

int launch_describe(json_t **out, const struct target *t, launch_scan *scan, struct error *e)
{
    json_t *launch = json_object();
    int r = describe_argv(launch, t, e);
    if (r == 0)
        r = describe_link(launch, t, "exe", "executable", e);
    if (r == 0)
        r = describe_link(launch, t, "cwd", "cwd", e);
    if (r == 0)
        r = describe_user(launch, t, e);
    if (r == 0)
        r = describe_environment(launch, t, e);
    if (r == 0)
        r = describe_fds(launch, t, scan, e);
    if (r < 0)
        json_decref(launch);
    else
        *out = launch;
    return r;
}
