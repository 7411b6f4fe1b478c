/*
 * refuse.c - see refuse.h. Each check looks at the whole line for one kind of reason, says the
 * first one it finds, and stands in the table below.
 */
#include "restore/launch/qemu/refuse.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "restore/launch/probe.h"
#include "restore/launch/qemu/endpoint.h"
#include "restore/launch/qemu/line.h"

struct scope {
    struct refuse_scope base; /* first */
    struct qemu_line line;
    struct endpoint_list endpoints;
};

static struct scope *scope_of(struct refuse_scope *base)
{
    return (struct scope *)base;
}

/* ---- for any line ---- */

static int check_in_use(struct refuse_scope *base)
{
    struct scope *s = scope_of(base);
    for (size_t i = 0; i < s->endpoints.count; i++) {
        const struct endpoint *p = &s->endpoints.items[i];
        int rc = 0;
        if (p->kind == ENDPOINT_UNIX_LISTEN)
            rc = refuse_look_unix(base, p->path, p->abstract);
        else if (p->kind == ENDPOINT_TCP_LISTEN && probe_tcp_held(p->host, p->port))
            rc = refuse_found(&s->base,
                              "TCP port %s is in use: the source VM, or one restored "
                              "from this image, may be running still",
                              p->port);
        if (rc)
            return rc;
    }
    return 0;
}

/* A file of guest memory: 1 when it can't be filled afresh. */
static int look_memory_file(struct scope *s, const char *path)
{
    CLEANUP_FD int fd = openat(s->base.cwd_fd, path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    struct stat st;
    if (fd < 0 && errno == ENOENT)
        return 0;
    if (fd < 0 || fstat(fd, &st))
        return refuse_found(&s->base, "can't look at guest memory in %s: %s", path,
                            strerror(errno));
    if (!S_ISREG(st.st_mode)) /* a directory: QEMU makes a file of its own in it */
        return 0;
    int pid = probe_mapped_by(&st);
    if (pid != 0)
        return refuse_found(&s->base, "guest memory in %s is mapped by process %d", path, pid);
    off_t data = lseek(fd, 0, SEEK_DATA);
    if (data >= 0)
        return refuse_found(
            &s->base,
            "the file %s, which is to be guest memory, holds data: remove it if nothing "
            "needs it",
            path);
    return errno == ENXIO ? 0
                          : refuse_found(&s->base, "can't look into %s: %s", path, strerror(errno));
}

static int check_memory_path(struct refuse_scope *base)
{
    struct scope *s = scope_of(base);
    for (size_t i = 0; i < s->line.n_options; i++) {
        const struct qemu_option *o = &s->line.options[i];
        if (!o->value || !(qemu_option_is(o, "object") || qemu_option_is(o, "mem-path")))
            continue;
        bool plain = qemu_option_is(o, "mem-path");
        json_t *v = qemu_value_parse(o->value, plain ? "mem-path" : "qom-type");
        const char *path = plain ? o->value : v ? qemu_value_string(v, "mem-path") : NULL;
        int rc = path ? look_memory_file(s, path) : 0;
        json_decref(v);
        if (rc)
            return rc;
    }
    return 0;
}

/* Memory that another process works on: its pages can't be brought in on demand for it. */
static int check_vhost_user(struct refuse_scope *base)
{
    struct scope *s = scope_of(base);
    for (size_t i = 0; i < s->line.n_options; i++) {
        const struct qemu_option *o = &s->line.options[i];
        bool backend =
            qemu_option_is(o, "netdev") || qemu_option_is(o, "device") || qemu_option_is(o, "nic");
        if (backend && o->value && strstr(o->value, "vhost-user"))
            return refuse_found(&s->base, "%s %s shares guest memory with another process",
                                s->line.argv[o->at], o->value);
    }
    return 0;
}

/* ---- for a recorded line ---- */

static int check_truncated(struct refuse_scope *base)
{
    struct scope *s = scope_of(base);
    for (size_t i = 0; i < s->endpoints.count; i++) {
        const struct endpoint *p = &s->endpoints.items[i];
        struct stat st;
        if (p->kind == ENDPOINT_TRUNCATE && fstatat(s->base.cwd_fd, p->path, &st, 0) == 0 &&
            S_ISREG(st.st_mode) && st.st_size > 0)
            return refuse_found(&s->base, "the file %s would be emptied", p->path);
    }
    return 0;
}

static int check_waits(struct refuse_scope *base)
{
    struct scope *s = scope_of(base);
    for (size_t i = 0; i < s->endpoints.count; i++) {
        const struct endpoint *p = &s->endpoints.items[i];
        if (p->waits)
            return refuse_found(&s->base, "QEMU would wait until somebody connects to %s (wait=on)",
                                p->path ? p->path : p->port);
    }
    return 0;
}

static int check_snapshot_option(struct refuse_scope *base)
{
    struct scope *s = scope_of(base);
    for (size_t i = 0; i < s->line.n_options; i++)
        if (qemu_option_is(&s->line.options[i], "snapshot"))
            return refuse_found(&s->base,
                                "with -snapshot the disks' changes were in files that are gone");
    return 0;
}

/* One descriptor number, or a list "3:4:5". */
static int look_descriptors(struct scope *s, const char *list)
{
    for (const char *p = list; *p;) {
        char *end;
        long fd = strtol(p, &end, 10);
        if (end == p)
            return 0; /* a name: passed in over QMP, not inherited */
        if (fd > 2 && !s->base.inherited((int)fd))
            return refuse_found(
                &s->base, "the descriptor %ld that QEMU had inherited does not exist here", fd);
        p = *end == ':' ? end + 1 : end;
        if (*p && p == end)
            return 0;
    }
    return 0;
}

static int check_descriptors(struct refuse_scope *base)
{
    struct scope *s = scope_of(base);
    static const char *const keys[] = {"fd", "fds", "vhostfd", "vhostfds"};
    static const char *const options[] = {"add-fd", "netdev", "nic", "net", "chardev", "object"};
    for (size_t i = 0; i < s->line.n_options; i++) {
        const struct qemu_option *o = &s->line.options[i];
        bool known = false;
        for (size_t j = 0; j < sizeof(options) / sizeof(options[0]); j++)
            known |= qemu_option_is(o, options[j]);
        json_t *v = known && o->value ? qemu_value_parse(o->value, "type") : NULL;
        int rc = 0;
        for (size_t j = 0; v && rc == 0 && j < sizeof(keys) / sizeof(keys[0]); j++) {
            const char *list = qemu_value_string(v, keys[j]);
            rc = list ? look_descriptors(s, list) : 0;
        }
        json_decref(v);
        if (rc)
            return rc;
    }
    return 0;
}

static int check_hotplugged(struct refuse_scope *base)
{
    struct scope *s = scope_of(base);
    size_t i;
    json_t *device;
    json_array_foreach(json_object_get(s->base.description, "devices"), i, device)
    {
        if (json_is_true(json_object_get(device, "hotplugged"))) {
            const char *path = json_string_value(json_object_get(device, "path"));
            return refuse_found(&s->base,
                                "the device %s was plugged in while the VM ran: the recorded line "
                                "lacks it",
                                path ? path : "(unnamed)");
        }
    }
    return 0;
}

static int check_disks(struct refuse_scope *base)
{
    struct scope *s = scope_of(base);
    size_t i;
    json_t *disk;
    json_array_foreach(json_object_get(s->base.description, "disks"), i, disk)
    {
        if (json_is_true(json_object_get(disk, "writable"))) {
            const char *file = json_string_value(json_object_get(disk, "file"));
            return refuse_found(&s->base,
                                "the disk %s was writable, so that it may have changed since the "
                                "snapshot: the guest would damage it",
                                file ? file : "(unnamed)");
        }
    }
    return 0;
}

static const struct refuse_check checks[] = {
    {HAZARD_IN_USE, false, check_in_use,
     "end who listens there (the source VM?), or have other addresses on the command line "
     "after --"},
    {HAZARD_MEM_PATH, false, check_memory_path,
     "end the source VM and remove the file, or give a command line with another mem-path"},
    {HAZARD_VHOST_USER, false, check_vhost_user, NULL},
    {HAZARD_HOT_PLUGGED, true, check_hotplugged,
     "add it to the command line that 'vmsnap restore --print-command' shows, and give that "
     "after --"},
    {HAZARD_DISKS, true, check_disks, NULL},
    {HAZARD_SNAPSHOT_OPTION, true, check_snapshot_option, NULL},
    {HAZARD_INHERITED_FD, true, check_descriptors,
     "open it at the same number when you call vmsnap, or give a command line after --"},
    {HAZARD_TRUNCATED_FILE, true, check_truncated, NULL},
    {HAZARD_WAIT_ON, true, check_waits,
     "give the command line with wait=off after --; 'vmsnap restore --print-command' shows it"},
};
#define N_CHECKS (sizeof(checks) / sizeof(checks[0]))

static int open_scope(struct scope *s, const struct relaunch *l, struct error *e)
{
    int rc = refuse_scope_open(&s->base, e);
    if (rc)
        return rc;
    rc =
        l->recorded ? qemu_line_parse_at(&s->line, l->argv, 0) : qemu_line_parse(&s->line, l->argv);
    for (size_t i = 0; rc == 0 && i < s->line.n_options; i++)
        rc = endpoints_of_option(&s->endpoints, &s->line.options[i]);
    return rc ? relaunch_no_memory(e) : 0;
}

static void close_scope(struct scope *s)
{
    endpoint_list_free(&s->endpoints);
    qemu_line_free(&s->line);
    refuse_scope_close(&s->base);
}

int qemu_refuse(const struct relaunch *l, const json_t *description, const char *const *allowed,
                bool (*inherited)(int fd), struct error *e)
{
    struct scope s = {
        .base = {.launch = l, .description = description, .cwd_fd = -1, .inherited = inherited}};
    int rc = open_scope(&s, l, e);
    if (rc == 0)
        rc = refuse_run(&s.base, checks, N_CHECKS, allowed, e);
    close_scope(&s);
    return rc;
}

int qemu_list_hazards(const struct relaunch *l, const json_t *description,
                      bool (*inherited)(int fd), struct restore_hazard *out, size_t *count,
                      struct error *e)
{
    struct scope s = {
        .base = {.launch = l, .description = description, .cwd_fd = -1, .inherited = inherited}};
    int rc = open_scope(&s, l, e);
    *count = 0;
    if (rc == 0)
        refuse_list(&s.base, checks, N_CHECKS, out, count);
    close_scope(&s);
    return rc;
}
