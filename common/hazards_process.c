/* Hazards that the kernel says of the VMM's process, through /proc. */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/hazards_private.h"
#include "common/json_text.h"

#define FDS_MAX 65536u

static int cannot_look(const struct hazard_search *s, const char *what, int err, struct error *e)
{
    return error_set(e, VMSNAP_EXIT_TARGET, err, "process %d: cannot read its %s",
                     (int)s->scope->t->pid, what);
}

static DIR *open_proc_dir(const struct target *t, const char *name)
{
    CLEANUP_FD int fd = openat(t->proc_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    if (d)
        take_fd(&fd); /* closedir() closes it */
    return d;
}

int hazard_list_fds(struct hazard_search *s, struct error *e)
{
    DIR *d = open_proc_dir(s->scope->t, "fd");
    if (!d)
        return cannot_look(s, "descriptors", errno, e);
    s->fds = json_array();
    for (const struct dirent *entry; (entry = readdir(d));) {
        char path[PATH_MAX];
        if (!isdigit((unsigned char)entry->d_name[0]) || json_array_size(s->fds) >= FDS_MAX)
            continue;
        ssize_t n = readlinkat(dirfd(d), entry->d_name, path, sizeof(path) - 1);
        if (n < 0)
            continue; /* closed since */
        path[n] = '\0';
        json_array_append_new(
            s->fds, json_pack("{s:i, s:s%}", "fd", atoi(entry->d_name), "target", path, (size_t)n));
    }
    closedir(d);
    return 0;
}

/* The first descriptor whose target starts with one of the texts, or NULL. */
static const char *fd_target(const struct hazard_search *s, const char *const *prefixes)
{
    size_t i;
    const json_t *fd;
    json_array_foreach(s->fds, i, fd)
    {
        const char *target = json_text(fd, "target", "");
        for (const char *const *p = prefixes; *p; p++)
            if (strncmp(target, *p, strlen(*p)) == 0)
                return target;
    }
    return NULL;
}

int hazard_look_vfio(struct hazard_search *s, struct hazard *h, struct error *e)
{
    (void)e;
    static const char *const prefixes[] = {"/dev/vfio/", "/dev/iommu", "anon_inode:[vfio", NULL};
    const char *target = fd_target(s, prefixes);
    if (target)
        hazard_found(h, "a host device is passed through (%.80s): it writes memory unseen", target);
    return 0;
}

int hazard_look_vdpa(struct hazard_search *s, struct hazard *h, struct error *e)
{
    (void)e;
    static const char *const prefixes[] = {"/dev/vhost-vdpa", "/dev/vduse", NULL};
    const char *target = fd_target(s, prefixes);
    if (target)
        hazard_found(h, "a vDPA device is in use (%.80s): it writes memory unseen", target);
    return 0;
}

/* The region that lies in this file, or NULL. */
static const struct region *region_of_file(const struct hazard_search *s, uint64_t inode,
                                           uint32_t dev_major, uint32_t dev_minor)
{
    for (size_t i = 0; i < s->scope->n_regions; i++) {
        const struct region *r = &s->scope->regions[i];
        struct stat st;
        if (r->fd >= 0 && fstat(r->fd, &st) == 0 && st.st_ino == inode &&
            major(st.st_dev) == dev_major && minor(st.st_dev) == dev_minor)
            return r;
    }
    return NULL;
}

/* The region that a process maps shared and writable, or NULL. Processes come and go: one that
 * can't be read is none. */
static const struct region *region_shared_with(const struct hazard_search *s, const char *pid)
{
    char path[64], perms[5];
    snprintf(path, sizeof(path), "/proc/%.20s/maps", pid);
    CLEANUP_STREAM FILE *f = fopen(path, "re");
    CLEANUP_FREE char *line = NULL;
    size_t size = 0;
    while (f && getline(&line, &size, f) >= 0) {
        unsigned dev_major, dev_minor;
        unsigned long long inode;
        if (sscanf(line, "%*x-%*x %4s %*x %x:%x %llu", perms, &dev_major, &dev_minor, &inode) !=
                4 ||
            inode == 0 || perms[1] != 'w' || perms[3] != 's')
            continue;
        const struct region *r = region_of_file(s, inode, dev_major, dev_minor);
        if (r)
            return r;
    }
    return NULL;
}

static bool any_region_in_a_file(const struct hazard_search *s)
{
    for (size_t i = 0; i < s->scope->n_regions; i++)
        if (s->scope->regions[i].fd >= 0)
            return true;
    return false;
}

/* A process's own name for itself, for the message. */
static void process_name(const char *pid, char *out, size_t size)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%.20s/comm", pid);
    CLEANUP_STREAM FILE *f = fopen(path, "re");
    if (!f || !fgets(out, (int)size, f))
        snprintf(out, size, "?");
    out[strcspn(out, "\n")] = '\0';
}

int hazard_look_shared(struct hazard_search *s, struct hazard *h, struct error *e)
{
    if (!any_region_in_a_file(s))
        return 0;
    DIR *d = opendir("/proc");
    if (!d)
        return cannot_look(s, "fellow processes", errno, e);
    for (const struct dirent *entry; !h->found && (entry = readdir(d));) {
        const char *pid = entry->d_name;
        if (!isdigit((unsigned char)pid[0]) || atoi(pid) == s->scope->t->pid ||
            atoi(pid) == getpid())
            continue;
        const struct region *r = region_shared_with(s, pid);
        if (!r)
            continue;
        char name[32];
        process_name(pid, name, sizeof(name));
        hazard_found(h, "process %.20s (%s) maps memory block %.100s and can write it unseen", pid,
                     name, r->name);
    }
    closedir(d);
    return 0;
}

int hazard_look_pinned(struct hazard_search *s, struct hazard *h, struct error *e)
{
    uint64_t pinned_kib = 0;
    int r = target_status_number(s->scope->t, "VmPin", &pinned_kib);
    if (r < 0 && r != -ENOENT)
        return cannot_look(s, "status", -r, e);
    if (pinned_kib > 0)
        hazard_found(h,
                     "%llu KiB of the VMM's memory are pinned for a device, which writes it unseen",
                     (unsigned long long)pinned_kib);
    return 0;
}

int hazard_look_io_uring(struct hazard_search *s, struct hazard *h, struct error *e)
{
    size_t i;
    const json_t *fd;
    json_array_foreach(s->fds, i, fd)
    {
        if (strcmp(json_text(fd, "target", ""), "anon_inode:[io_uring]") != 0)
            continue;
        char file[64];
        uint64_t buffers = 0;
        snprintf(file, sizeof(file), "fdinfo/%d",
                 (int)json_integer_value(json_object_get(fd, "fd")));
        int r = target_status_number_of(s->scope->t, file, "UserBufs", 10, &buffers);
        if (r < 0 && r != -ENOENT && r != -ESRCH)
            return cannot_look(s, file, -r, e);
        if (buffers > 0)
            hazard_found(h,
                         "%llu buffers are registered with io_uring (descriptor %s), which "
                         "writes them unseen",
                         (unsigned long long)buffers, file + 7);
    }
    return 0;
}

/* The region that a mapping is part of, or NULL. */
static const struct region *region_of_mapping(const struct hazard_search *s,
                                              const struct mapping *m)
{
    for (size_t i = 0; i < s->scope->n_regions; i++) {
        const struct region *r = &s->scope->regions[i];
        if (m->start < r->hva + r->max_bytes && m->end > r->hva)
            return r;
    }
    return NULL;
}

int hazard_look_userfaultfd(struct hazard_search *s, struct hazard *h, struct error *e)
{
    struct mapping_list maps;
    int r = target_mappings(s->scope->t, &maps, e);
    if (r < 0)
        return r;
    for (size_t i = 0; i < maps.count && !h->found; i++) {
        const struct mapping *m = &maps.items[i];
        const struct region *block = region_of_mapping(s, m);
        bool counts = block || !s->scope->regions;
        if (counts && (m->uffd_missing || m->uffd_wp || m->uffd_minor))
            hazard_found(h,
                         "memory %.100s is under another userfaultfd (another snapshot, a "
                         "restore still loading, a migration)",
                         block ? block->name : "of the process");
    }
    mapping_list_free(&maps);
    return 0;
}

/* QEMU's default is no hazard: the memory is taken from KSM first (MADV_UNMERGEABLE), and the
 * snapshot refused under this name if that fails. */
int hazard_look_ksm(struct hazard_search *s, struct hazard *h, struct error *e)
{
    (void)e;
    size_t n = 0;
    for (size_t i = 0; i < s->scope->n_regions; i++)
        n += s->scope->regions[i].mergeable;
    if (n > 0)
        snprintf(h->reason, sizeof(h->reason),
                 "%zu memory blocks are mergeable: taken from KSM for the time of a snapshot", n);
    return 0;
}

int hazard_look_traced(struct hazard_search *s, struct hazard *h, struct error *e)
{
    uint64_t tracer = 0;
    int r = target_status_number(s->scope->t, "TracerPid", &tracer);
    if (r < 0)
        return cannot_look(s, "status", -r, e);
    if (tracer == 0)
        return 0;
    char pid[24], name[32];
    snprintf(pid, sizeof(pid), "%llu", (unsigned long long)tracer);
    process_name(pid, name, sizeof(name));
    hazard_found(h, "process %s (%s) traces the VMM: only one can", pid, name);
    return 0;
}
