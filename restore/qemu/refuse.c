/*
 * refuse.c - see refuse.h. Each check looks at the whole line for one kind of reason, says the
 * first one it finds, and stands in the table with its published name.
 */
#include "restore/qemu/refuse.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "restore/qemu/endpoint.h"
#include "restore/qemu/line.h"
#include "restore/qemu/probe.h"

struct scope {
    const struct relaunch *launch;
    const json_t *description;
    struct qemu_line line;
    struct endpoint_list endpoints;
    int cwd_fd; /* what relative paths of the line start from */
    bool (*inherited)(int fd);
    char reason[512]; /* set by the check that finds something */
};

/* A check: 1 found (reason is set), 0 nothing, -errno can't tell (reason is set too: refused). */
typedef int check_fn(struct scope *s);

__attribute__((format(printf, 2, 3))) static int found(struct scope *s, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(s->reason, sizeof(s->reason), fmt, ap);
    va_end(ap);
    return 1;
}

/* ---- for any line ---- */

static int look_unix(struct scope *s, const struct endpoint *p)
{
    int held = probe_unix_held(s->cwd_fd, p->path, p->abstract);
    if (held < 0)
        return found(s, "can't tell whether the socket %s is in use: %s", p->path, strerror(-held));
    return held ? found(s, "the socket %s is in use: the source VM may be running still", p->path)
                : 0;
}

static int check_in_use(struct scope *s)
{
    for (size_t i = 0; i < s->endpoints.count; i++) {
        const struct endpoint *p = &s->endpoints.items[i];
        int rc = 0;
        if (p->kind == ENDPOINT_UNIX_LISTEN)
            rc = look_unix(s, p);
        else if (p->kind == ENDPOINT_TCP_LISTEN && probe_tcp_held(p->host, p->port))
            rc = found(s, "TCP port %s is in use: the source VM may be running still", p->port);
        if (rc)
            return rc;
    }
    return 0;
}

/* A file of guest memory: 1 when it can't be filled afresh. */
static int look_memory_file(struct scope *s, const char *path)
{
    CLEANUP_FD int fd = openat(s->cwd_fd, path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    struct stat st;
    if (fd < 0 && errno == ENOENT)
        return 0;
    if (fd < 0 || fstat(fd, &st))
        return found(s, "can't look at guest memory in %s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode)) /* a directory: QEMU makes a file of its own in it */
        return 0;
    int pid = probe_mapped_by(&st);
    if (pid != 0)
        return found(s, "guest memory in %s is mapped by process %d", path, pid);
    off_t data = lseek(fd, 0, SEEK_DATA);
    if (data >= 0)
        return found(s,
                     "the file %s, which is to be guest memory, holds data: remove it if nothing "
                     "needs it",
                     path);
    return errno == ENXIO ? 0 : found(s, "can't look into %s: %s", path, strerror(errno));
}

static int check_memory_path(struct scope *s)
{
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
static int check_vhost_user(struct scope *s)
{
    for (size_t i = 0; i < s->line.n_options; i++) {
        const struct qemu_option *o = &s->line.options[i];
        bool backend =
            qemu_option_is(o, "netdev") || qemu_option_is(o, "device") || qemu_option_is(o, "nic");
        if (backend && o->value && strstr(o->value, "vhost-user"))
            return found(s, "%s %s shares guest memory with another process", s->line.argv[o->at],
                         o->value);
    }
    return 0;
}

/* ---- for a recorded line ---- */

static int check_truncated(struct scope *s)
{
    for (size_t i = 0; i < s->endpoints.count; i++) {
        const struct endpoint *p = &s->endpoints.items[i];
        struct stat st;
        if (p->kind == ENDPOINT_TRUNCATE && fstatat(s->cwd_fd, p->path, &st, 0) == 0 &&
            S_ISREG(st.st_mode) && st.st_size > 0)
            return found(s, "the file %s would be emptied", p->path);
    }
    return 0;
}

static int check_waits(struct scope *s)
{
    for (size_t i = 0; i < s->endpoints.count; i++) {
        const struct endpoint *p = &s->endpoints.items[i];
        if (p->waits)
            return found(s, "QEMU would wait until somebody connects to %s (wait=on)",
                         p->path ? p->path : p->port);
    }
    return 0;
}

static int check_snapshot_option(struct scope *s)
{
    for (size_t i = 0; i < s->line.n_options; i++)
        if (qemu_option_is(&s->line.options[i], "snapshot"))
            return found(s, "with -snapshot the disks' changes were in files that are gone");
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
        if (fd > 2 && !s->inherited((int)fd))
            return found(s, "the descriptor %ld that QEMU had inherited does not exist here", fd);
        p = *end == ':' ? end + 1 : end;
        if (*p && p == end)
            return 0;
    }
    return 0;
}

static int check_descriptors(struct scope *s)
{
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

static int check_hotplugged(struct scope *s)
{
    size_t i;
    json_t *device;
    json_array_foreach(json_object_get(s->description, "devices"), i, device)
    {
        if (json_is_true(json_object_get(device, "hotplugged"))) {
            const char *path = json_string_value(json_object_get(device, "path"));
            return found(s,
                         "the device %s was plugged in while the VM ran: the recorded line "
                         "lacks it",
                         path ? path : "(unnamed)");
        }
    }
    return 0;
}

static int check_disks(struct scope *s)
{
    size_t i;
    json_t *disk;
    json_array_foreach(json_object_get(s->description, "disks"), i, disk)
    {
        if (json_is_true(json_object_get(disk, "writable"))) {
            const char *file = json_string_value(json_object_get(disk, "file"));
            return found(s,
                         "the disk %s was writable, so that it may have changed since the "
                         "snapshot: the guest would damage it",
                         file ? file : "(unnamed)");
        }
    }
    return 0;
}

static const struct check {
    struct restore_hazard_kind kind;
    bool recorded_only;
    check_fn *look;   /* NULL: image_owner.c looks, before the line is believed at all */
    const char *hint; /* NULL: --allow, or the command line */
} checks[] = {
    {{"image-owner", false, "another user could have written the image, and so its command line"},
     true,
     NULL,
     NULL},
    {{"in-use", false, "a socket or port of the command line is in use, by the source VM say"},
     false,
     check_in_use,
     "end the source VM, or give a command line with other addresses after --"},
    {{"mem-path", false, "a file of guest memory holds data or is mapped by another process"},
     false,
     check_memory_path,
     "end the source VM and remove the file, or give a command line with another mem-path"},
    {{"vhost-user", false, "guest memory would be shared with another process"},
     false,
     check_vhost_user,
     NULL},
    {{"hot-plugged", false, "a device was hot-plugged: the recorded line lacks it"},
     true,
     check_hotplugged,
     "add it to the command line that 'vmsnap restore --print-command' shows, and give that "
     "after --"},
    {{"disks", true, "a disk was writable: it may have changed since the snapshot"},
     true,
     check_disks,
     NULL},
    {{"snapshot-option", false, "-snapshot: the disks' changes are gone"},
     true,
     check_snapshot_option,
     NULL},
    {{"inherited-fd", false, "a descriptor that the VMM had inherited does not exist here"},
     true,
     check_descriptors,
     "open it at the same number when you call vmsnap, or give a command line after --"},
    {{"truncated-file", true, "a log or serial file would be emptied"},
     true,
     check_truncated,
     NULL},
    {{"wait-on", false, "a server socket with wait=on would hold up the start"},
     true,
     check_waits,
     "give the command line with wait=off after --; 'vmsnap restore --print-command' shows it"},
};
#define N_CHECKS (sizeof(checks) / sizeof(checks[0]))

const struct restore_hazard_kind *restore_hazard_kinds(size_t *count)
{
    static struct restore_hazard_kind kinds[N_CHECKS];
    for (size_t i = 0; i < N_CHECKS; i++)
        kinds[i] = checks[i].kind;
    *count = N_CHECKS;
    return kinds;
}

static bool is_allowed(const struct check *c, const char *const *allowed)
{
    for (; c->kind.allowable && allowed && *allowed; allowed++)
        if (strcmp(*allowed, c->kind.name) == 0)
            return true;
    return false;
}

static int run_check(struct scope *s, const struct check *c, struct error *e)
{
    if (c->look(s) == 0)
        return 0;
    error_set(e, VMSNAP_EXIT_HAZARD, 0, "%s: %s", c->kind.name, s->reason);
    if (c->kind.allowable)
        error_hint(e, "if that is what you want: --allow %s", c->kind.name);
    else
        error_hint(e, "%s", c->hint ? c->hint : "give another command line after --");
    return -EPERM;
}

static int open_scope(struct scope *s, struct error *e)
{
    s->cwd_fd = open(s->launch->cwd ? s->launch->cwd : ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (s->cwd_fd < 0) {
        int err = errno;
        error_set(e, VMSNAP_EXIT_MISMATCH, err, "the VMM's working directory %s can't be entered",
                  s->launch->cwd ? s->launch->cwd : ".");
        error_hint(e, "make that directory, or give a command line after --");
        return -err;
    }
    int rc = s->launch->recorded ? qemu_line_parse_at(&s->line, s->launch->argv, 0)
                                 : qemu_line_parse(&s->line, s->launch->argv);
    for (size_t i = 0; rc == 0 && i < s->line.n_options; i++)
        rc = endpoints_of_option(&s->endpoints, &s->line.options[i]);
    return rc ? error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "no memory for the command line") : 0;
}

bool relaunch_fd_inherited(int fd)
{
    int flags = fcntl(fd, F_GETFD);
    return flags >= 0 && !(flags & FD_CLOEXEC);
}

static void close_scope(struct scope *s)
{
    endpoint_list_free(&s->endpoints);
    qemu_line_free(&s->line);
    if (s->cwd_fd >= 0)
        close(s->cwd_fd);
}

static bool counts_for(const struct check *c, const struct relaunch *l)
{
    return c->look && (l->recorded || !c->recorded_only);
}

int relaunch_refuse(const struct relaunch *l, const json_t *description, const char *const *allowed,
                    bool (*inherited)(int fd), struct error *e)
{
    struct scope s = {
        .launch = l, .description = description, .cwd_fd = -1, .inherited = inherited};
    int rc = open_scope(&s, e);
    for (size_t i = 0; i < N_CHECKS && rc == 0; i++) {
        const struct check *c = &checks[i];
        if (counts_for(c, l) && !is_allowed(c, allowed))
            rc = run_check(&s, c, e);
    }
    close_scope(&s);
    return rc;
}

int relaunch_list(const struct relaunch *l, const json_t *description, bool (*inherited)(int fd),
                  struct restore_hazard *out, size_t *count, struct error *e)
{
    struct scope s = {
        .launch = l, .description = description, .cwd_fd = -1, .inherited = inherited};
    int rc = open_scope(&s, e);
    *count = 0;
    for (size_t i = 0; i < N_CHECKS && rc == 0; i++) {
        if (!counts_for(&checks[i], l))
            continue;
        struct restore_hazard *h = &out[(*count)++];
        s.reason[0] = '\0';
        h->kind = &checks[i].kind;
        h->found = checks[i].look(&s) != 0;
        memcpy(h->reason, s.reason, sizeof(h->reason));
    }
    close_scope(&s);
    return rc;
}
