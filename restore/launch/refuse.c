#include "restore/launch/refuse.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "restore/launch/probe.h"

/* Published names: only ever added to. In the order of enum restore_hazard_id. */
static const struct restore_hazard_kind kinds[] = {
    {"image-owner", false, "another user could have written the image, and so its command line"},
    {"in-use", false, "a socket or port of the command line is in use, by the source VM say"},
    {"mem-path", false, "a file of guest memory holds data or is mapped by another process"},
    {"vhost-user", false, "guest memory would be shared with another process"},
    {"hot-plugged", false, "a device was hot-plugged: the recorded line lacks it"},
    {"disks", true, "a disk was writable: it may have changed since the snapshot"},
    {"snapshot-option", false, "-snapshot: the disks' changes are gone"},
    {"inherited-fd", false, "a descriptor that the VMM had inherited does not exist here"},
    {"truncated-file", true, "a log or serial file would be emptied"},
    {"wait-on", false, "a server socket with wait=on would hold up the start"},
};

const struct restore_hazard_kind *restore_hazard_kinds(size_t *count)
{
    *count = sizeof(kinds) / sizeof(kinds[0]);
    return kinds;
}

int refuse_found(struct refuse_scope *s, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(s->reason, sizeof(s->reason), fmt, ap);
    va_end(ap);
    return 1;
}

int refuse_scope_open(struct refuse_scope *s, struct error *e)
{
    const char *cwd = relaunch_directory(s->launch);
    s->cwd_fd = open(cwd, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (s->cwd_fd >= 0)
        return 0;
    int err = errno;
    error_set(e, VMSNAP_EXIT_MISMATCH, err, "the VMM's working directory %s can't be entered", cwd);
    error_hint(e, "make that directory, or give a command line after --");
    return -err;
}

void refuse_scope_close(struct refuse_scope *s)
{
    if (s->cwd_fd >= 0)
        close(s->cwd_fd);
    s->cwd_fd = -1;
}

/* With a slash at its end; empty where it can't be told. */
static const char *name_directory(const struct refuse_scope *s, char text[256])
{
    char link[64];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", s->cwd_fd);
    ssize_t n = readlink(link, text, 254);
    if (n <= 0 || n == 254)
        n = 0;
    else if (text[n - 1] != '/')
        text[n++] = '/';
    text[n] = '\0';
    return text;
}

int refuse_look_unix(struct refuse_scope *s, const char *path, bool abstract)
{
    char directory[256];
    int held = probe_unix_held(s->cwd_fd, path, abstract);
    if (held == 0)
        return 0;
    const char *base = abstract ? "@" : path[0] == '/' ? "" : name_directory(s, directory);
    if (held < 0)
        return refuse_found(s, "can't tell whether the socket %s%s is in use: %s", base, path,
                            strerror(-held));
    return refuse_found(s,
                        "the socket %s%s is in use: the source VM, or one restored from this "
                        "image, may be running still",
                        base, path);
}

static bool is_allowed(const struct restore_hazard_kind *kind, const char *const *allowed)
{
    for (; kind->allowable && allowed && *allowed; allowed++)
        if (strcmp(*allowed, kind->name) == 0)
            return true;
    return false;
}

static bool counts_for(const struct refuse_check *c, const struct relaunch *l)
{
    return l->recorded || !c->recorded_only;
}

int refuse_run(struct refuse_scope *s, const struct refuse_check *checks, size_t n,
               const char *const *allowed, struct error *e)
{
    for (size_t i = 0; i < n; i++) {
        const struct refuse_check *c = &checks[i];
        const struct restore_hazard_kind *kind = &kinds[c->id];
        if (!counts_for(c, s->launch) || is_allowed(kind, allowed) || c->look(s) == 0)
            continue;
        error_set(e, VMSNAP_EXIT_HAZARD, 0, "%s: %s", kind->name, s->reason);
        if (kind->allowable)
            error_hint(e, "if that is what you want: --allow %s", kind->name);
        else
            error_hint(e, "%s", c->hint ? c->hint : "give another command line after --");
        return -EPERM;
    }
    return 0;
}

void refuse_list(struct refuse_scope *s, const struct refuse_check *checks, size_t n,
                 struct restore_hazard *out, size_t *count)
{
    *count = 0;
    for (size_t i = 0; i < n; i++) {
        if (!counts_for(&checks[i], s->launch))
            continue;
        struct restore_hazard *h = &out[(*count)++];
        s->reason[0] = '\0';
        h->kind = &kinds[checks[i].id];
        h->found = checks[i].look(s) != 0;
        memcpy(h->reason, s->reason, sizeof(h->reason));
    }
}
