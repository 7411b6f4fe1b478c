#include "common/fellow.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <linux/kcmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "common/cleanup.h"

/* A file that is looked for. */
struct wanted {
    dev_t dev;
    ino_t inode;
    const struct region *region;
};

void fellow_name(const char *pid, char *out, size_t size)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%.20s/comm", pid);
    CLEANUP_STREAM FILE *f = fopen(path, "re");
    if (!f || !fgets(out, (int)size, f))
        snprintf(out, size, "?");
    out[strcspn(out, "\n")] = '\0';
}

static size_t list_wanted(const struct fellow_search *s, struct wanted *out)
{
    size_t n = 0;
    struct stat st;
    if (s->file)
        out[n++] = (struct wanted){.dev = s->file->st_dev, .inode = s->file->st_ino};
    for (size_t i = 0; i < s->n_regions; i++)
        if (s->regions[i].fd >= 0 && fstat(s->regions[i].fd, &st) == 0)
            out[n++] =
                (struct wanted){.dev = st.st_dev, .inode = st.st_ino, .region = &s->regions[i]};
    return n;
}

/* The file that a line of /proc/PID/maps names, or NULL. */
static const struct wanted *named_by(const char *line, const struct wanted *files, size_t n,
                                     bool writers_only)
{
    char perms[5];
    unsigned dev_major, dev_minor;
    unsigned long long inode;
    if (sscanf(line, "%*x-%*x %4s %*x %x:%x %llu", perms, &dev_major, &dev_minor, &inode) != 4 ||
        inode == 0 || (writers_only && (perms[1] != 'w' || perms[3] != 's')))
        return NULL;
    for (size_t i = 0; i < n; i++)
        if (files[i].inode == inode && files[i].dev == makedev(dev_major, dev_minor))
            return &files[i];
    return NULL;
}

static const struct wanted *mapped_by(const char *pid, const struct wanted *files, size_t n,
                                      bool writers_only)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%.20s/maps", pid);
    CLEANUP_STREAM FILE *f = fopen(path, "re");
    CLEANUP_FREE char *line = NULL;
    size_t size = 0;
    const struct wanted *found = NULL;
    while (f && !found && getline(&line, &size, f) >= 0)
        found = named_by(line, files, n, writers_only);
    return found;
}

/* Of one that was made by vfork(), say. */
static bool shares_memory(pid_t a, pid_t b)
{
    return syscall(SYS_kcmp, a, b, KCMP_VM, 0, 0) == 0;
}

int fellow_find(struct fellow *out, const struct fellow_search *s)
{
    CLEANUP_FREE struct wanted *files = calloc(s->n_regions + 1, sizeof(*files));
    if (!files)
        return -ENOMEM;
    size_t n = list_wanted(s, files);
    DIR *d = n > 0 ? opendir("/proc") : NULL;
    if (!d)
        return n > 0 ? -errno : 0;
    int found = 0;
    for (const struct dirent *entry; !found && (entry = readdir(d));) {
        const char *name = entry->d_name;
        pid_t pid = isdigit((unsigned char)name[0]) ? atoi(name) : 0;
        if (pid == 0 || (s->target && (pid == getpid() || pid == s->target)))
            continue;
        const struct wanted *file = mapped_by(name, files, n, s->writers_only);
        if (!file || (s->target && shares_memory(pid, s->target)))
            continue;
        *out = (struct fellow){.pid = pid, .region = file->region};
        fellow_name(name, out->name, sizeof(out->name));
        found = 1;
    }
    closedir(d);
    return found;
}
