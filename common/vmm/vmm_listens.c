#include "common/vmm/vmm_listens.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/qmp.h"

#define ACCEPTS 0x10000u /* __SO_ACCEPTCON: the flag in /proc/net/unix of a socket that listens */
#define SOCKETS_MAX 65536u

struct inodes {
    unsigned long *items;
    size_t count;
};

/* The sockets that the process has open. Descriptors that come or go meanwhile are skipped. */
static int find_sockets(struct inodes *out, const struct target *t)
{
    CLEANUP_FD int fd = openat(t->proc_fd, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir)
        return -errno;
    take_fd(&fd); /* closedir() closes it */
    const struct dirent *entry;
    int rc = 0;
    while (rc == 0 && out->count < SOCKETS_MAX && (entry = readdir(dir))) {
        char link[64];
        unsigned long inode;
        ssize_t n = readlinkat(dirfd(dir), entry->d_name, link, sizeof(link) - 1);
        link[n > 0 ? n : 0] = '\0';
        if (sscanf(link, "socket:[%lu]", &inode) != 1)
            continue;
        unsigned long *grown = realloc(out->items, (out->count + 1) * sizeof(*grown));
        if (!grown) {
            rc = -ENOMEM;
            break;
        }
        out->items = grown;
        grown[out->count++] = inode;
    }
    closedir(dir);
    return rc;
}

static bool has(const struct inodes *sockets, unsigned long inode)
{
    for (size_t i = 0; i < sockets->count; i++)
        if (sockets->items[i] == inode)
            return true;
    return false;
}

/* A line of /proc/PID/net/unix (proc(5)): "Num: RefCount Protocol Flags Type St Inode Path". */
static void take_line(json_t *paths, const struct inodes *sockets, char *line)
{
    unsigned flags;
    unsigned long inode;
    int at = 0;
    line[strcspn(line, "\n")] = '\0';
    if (sscanf(line, "%*s %*x %*x %x %*x %*x %lu %n", &flags, &inode, &at) < 2 || at == 0)
        return;
    const char *path = line + at;
    if ((flags & ACCEPTS) && *path && *path != '@' && has(sockets, inode))
        json_array_append_new(paths, json_string(path));
}

int vmm_listens(json_t **out, const struct target *t, struct error *e)
{
    struct inodes sockets = {0};
    int rc = find_sockets(&sockets, t);
    CLEANUP_FD int fd = rc ? -1 : openat(t->proc_fd, "net/unix", O_RDONLY | O_CLOEXEC);
    CLEANUP_STREAM FILE *f = fd < 0 ? NULL : fdopen(fd, "r");
    if (rc || !f) {
        free(sockets.items);
        return error_set(e, VMSNAP_EXIT_TARGET, rc ? -rc : errno,
                         "process %d: cannot see its sockets", (int)t->pid);
    }
    take_fd(&fd);
    CLEANUP_FREE char *line = NULL;
    size_t size = 0;
    json_t *paths = json_array();
    while (getline(&line, &size, f) >= 0)
        take_line(paths, &sockets, line);
    free(sockets.items);
    *out = paths;
    return 0;
}

int vmm_behind(int connection, pid_t *pid, struct error *e)
{
    int rc = qmp_peer_pid(connection, pid);
    if (rc) {
        error_set(e, VMSNAP_EXIT_TARGET, -rc,
                  "cannot tell which process is behind the VM's socket");
        error_hint(e, "name the VM's process with --pid");
        return rc;
    }
    char name[QMP_PEER_NAME];
    qmp_peer_name(connection, name);
    if (strcmp(name, "vmsnap") != 0)
        return 0;
    error_set(e, VMSNAP_EXIT_TARGET, 0, "process %d, which listens there, is a vmsnap and no VMM",
              (int)*pid);
    error_hint(e, "the socket of 'vmsnap restore --listen' is for VMs that load their memory: give "
                  "that of a VMM, --api with a Firecracker's --api-sock");
    return -EPROTOTYPE;
}
