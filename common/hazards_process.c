/* Hazards that the kernel says of the VMM's process, through /proc. */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fellow.h"
#include "common/hazards_private.h"
#include "common/json_text.h"
#include "common/restore_record.h"

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

int hazard_look_shared(struct hazard_search *s, struct hazard *h, struct error *e)
{
    struct fellow found;
    const struct fellow_search search = {.target = s->scope->t->pid,
                                         .writers_only = true,
                                         .regions = s->scope->regions,
                                         .n_regions = s->scope->n_regions};
    int r = fellow_find(&found, &search);
    if (r < 0)
        return cannot_look(s, "fellow processes", -r, e);
    if (r > 0)
        hazard_found(h, "process %d (%s) maps memory block %.100s and can write it unseen",
                     (int)found.pid, found.name, found.region->name);
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

/* A restore of ours says so itself, also before memory is registered. */
static int look_at_record(struct hazard_search *s, struct hazard *h, struct error *e)
{
    struct restore_look look;
    int r = restore_look(s->scope->t, &look);
    if (r < 0)
        return cannot_look(s, "descriptors", -r, e);
    if (look.under_way) {
        char words[sizeof(h->reason)];
        restore_look_words(&look, words, sizeof(words));
        hazard_found(h, "%s", words);
    }
    return 0;
}

int hazard_look_userfaultfd(struct hazard_search *s, struct hazard *h, struct error *e)
{
    struct mapping_list maps;
    int r = look_at_record(s, h, e);
    if (r < 0 || h->found)
        return r;
    r = target_mappings(s->scope->t, &maps, e);
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
    fellow_name(pid, name, sizeof(name));
    hazard_found(h, "process %s (%s) traces the VMM: only one can", pid, name);
    return 0;
}
