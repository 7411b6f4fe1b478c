/*
 * target.c - identity of the target process and copies out of it. The mappings are parsed in
 * target/maps.c.
 */
#include "common/target/target.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/kernel.h"

#define PAGE_BYTES 4096u
#define USER_END (1ull << 47) /* x86-64, unless a process asks for more */

static int open_failed(struct target *t, pid_t pid, int err, const char *what, struct error *e)
{
    target_close(t);
    if (err == ESRCH || err == ENOENT || err == EINVAL) {
        error_set(e, VMSNAP_EXIT_TARGET, ESRCH, "process %d", (int)pid);
        return -ESRCH;
    }
    error_set(e, VMSNAP_EXIT_TARGET, err, "process %d: can't open %s", (int)pid, what);
    if (err == EPERM || err == EACCES)
        error_hint(e, geteuid()
                          ? "run vmsnap as root"
                          : "root may not here: a process of the host, or of another container");
    return -err;
}

/* Opens a file of /proc/PID; sets errno. */
static int open_in_proc(const struct target *t, const char *name, int flags)
{
    return openat(t->proc_fd, name, flags | O_CLOEXEC);
}

int target_open(struct target *t, pid_t pid, struct error *e)
{
    *t = (struct target){.pid = pid, .pidfd = -1, .proc_fd = -1, .pagemap_fd = -1, .mem_fd = -1};
    t->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (t->pidfd < 0)
        return open_failed(t, pid, errno, "pidfd", e);
    char path[32];
    snprintf(path, sizeof(path), "/proc/%d", (int)pid);
    t->proc_fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (t->proc_fd < 0)
        return open_failed(t, pid, errno, path, e);
    t->pagemap_fd = open_in_proc(t, "pagemap", O_RDONLY);
    if (t->pagemap_fd < 0)
        return open_failed(t, pid, errno, "its pagemap", e);
    t->mem_fd = open_in_proc(t, "mem", O_RDONLY);
    if (t->mem_fd < 0)
        return open_failed(t, pid, errno, "its memory", e);
    kernel_probe(); /* so that target_presence() never has to ask */
    /* Alive now: so the number was not given to another process between the opens. */
    if (!target_alive(t))
        return open_failed(t, pid, ESRCH, "", e);
    return 0;
}

static void close_and_clear(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void target_close(struct target *t)
{
    close_and_clear(&t->pidfd);
    close_and_clear(&t->proc_fd);
    close_and_clear(&t->pagemap_fd);
    close_and_clear(&t->mem_fd);
}

bool target_alive(const struct target *t)
{
    struct pollfd p = {.fd = t->pidfd, .events = POLLIN};
    return poll(&p, 1, 0) == 0;
}

int target_lock(const struct target *t, struct error *e)
{
    if (flock(t->pagemap_fd, LOCK_EX | LOCK_NB) == 0)
        return 0;
    if (errno != EWOULDBLOCK)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "process %d: cannot lock it", (int)t->pid);
    error_set(e, VMSNAP_EXIT_BUSY, EBUSY, "process %d is being snapshotted already", (int)t->pid);
    error_hint(e, "wait until the other vmsnap has ended");
    return -EBUSY;
}

int target_get_fd(const struct target *t, int fd)
{
    int ours = (int)syscall(SYS_pidfd_getfd, t->pidfd, fd, 0);
    return ours >= 0 ? ours : -errno;
}

int target_fd_is(const struct target *t, int fd, const char *link, bool *same)
{
    char name[32], is[128];
    snprintf(name, sizeof(name), "fd/%d", fd);
    ssize_t n = readlinkat(t->proc_fd, name, is, sizeof(is));
    if (n < 0)
        return -errno;
    *same = (size_t)n == strlen(link) && memcmp(is, link, (size_t)n) == 0;
    return 0;
}

/*
 * One entry of /proc/PID/pagemap: bit 63 present, bit 62 swapped, and then the swap type in bits
 * 0-4 and the offset in bits 5-54. One of the last types is not swap but a marker
 * (linux/swapops.h): offset bit 0 a write-protect marker over a hole, bit 1 poison. Linux 6.1 has a
 * type of its own, behind the marker's, for swap that could not be read back, which is as good as
 * poison. Device, migration and hardware poison entries have types below these; they are memory
 * that is there, and a hardware poisoned page shows when it is read.
 */
enum page_presence target_decode_pagemap(uint64_t entry, unsigned marker_type)
{
    const uint64_t present = 1ull << 63, swapped = 1ull << 62;
    const uint64_t type_mask = 31, poison = 1ull << (5 + 1);
    if (entry & present)
        return PAGE_PRESENT;
    if (!(entry & swapped))
        return PAGE_ABSENT;
    if ((entry & type_mask) > marker_type)
        return PAGE_POISONED;
    if ((entry & type_mask) < marker_type)
        return PAGE_PRESENT;
    return entry & poison ? PAGE_POISONED : PAGE_ABSENT;
}

int target_presence(const struct target *t, uint64_t hva, size_t n_pages, enum page_presence *out)
{
    uint64_t entries[512];
    unsigned marker_type = kernel_probe()->marker_type;
    while (n_pages > 0) {
        size_t n = n_pages < 512 ? n_pages : 512;
        off_t at = (off_t)(hva / PAGE_BYTES * sizeof(entries[0]));
        ssize_t r = pread(t->pagemap_fd, entries, n * sizeof(entries[0]), at);
        if (r < 0)
            return -errno;
        /* Past the end of any address space; else the memory is gone: the process is ending, which
         * takes a while with much memory, or runs another program. */
        if (r < (ssize_t)sizeof(entries[0]))
            return hva >= USER_END && target_alive(t) ? -EFAULT : -ESRCH;
        n = (size_t)r / sizeof(entries[0]);
        for (size_t i = 0; i < n; i++)
            out[i] = target_decode_pagemap(entries[i], marker_type);
        out += n;
        hva += n * PAGE_BYTES;
        n_pages -= n;
    }
    return 0;
}

ssize_t target_read(const struct target *t, uint64_t hva, void *buf, size_t len)
{
    struct iovec local = {.iov_base = buf, .iov_len = len};
    struct iovec remote = {.iov_base = (void *)(uintptr_t)hva, .iov_len = len};
    ssize_t n = process_vm_readv(t->pid, &local, 1, &remote, 1, 0);
    return n >= 0 ? n : -errno;
}

ssize_t target_write(const struct target *t, uint64_t hva, const void *buf, size_t len)
{
    struct iovec local = {.iov_base = (void *)(uintptr_t)buf, .iov_len = len};
    struct iovec remote = {.iov_base = (void *)(uintptr_t)hva, .iov_len = len};
    ssize_t n = process_vm_writev(t->pid, &local, 1, &remote, 1, 0);
    return n >= 0 ? n : -errno;
}

static int open_stream(const struct target *t, const char *name, FILE **out)
{
    CLEANUP_FD int fd = open_in_proc(t, name, O_RDONLY);
    if (fd < 0)
        return errno == ENOENT ? -ESRCH : -errno;
    *out = fdopen(fd, "re");
    if (!*out)
        return -ENOMEM;
    fd = -1; /* the stream's now */
    return 0;
}

static int read_maps(const struct target *t, const char *file, struct mapping_list *out,
                     struct error *e)
{
    CLEANUP_STREAM FILE *f = NULL;
    *out = (struct mapping_list){0};
    int r = open_stream(t, file, &f);
    if (r == 0)
        r = mapping_list_parse(f, out);
    if (r)
        return error_set(e, VMSNAP_EXIT_TARGET, -r, "process %d: can't read its %s", (int)t->pid,
                         file);
    return 0;
}

int target_mappings(const struct target *t, struct mapping_list *out, struct error *e)
{
    return read_maps(t, "smaps", out, e);
}

int target_mappings_brief(const struct target *t, struct mapping_list *out, struct error *e)
{
    return read_maps(t, "maps", out, e);
}

int target_status_number(const struct target *t, const char *key, uint64_t *value)
{
    return target_status_number_of(t, "status", key, 10, value);
}

int target_status_number_of(const struct target *t, const char *file, const char *key, int base,
                            uint64_t *value)
{
    CLEANUP_STREAM FILE *f = NULL;
    int r = open_stream(t, file, &f);
    if (r)
        return r;
    CLEANUP_FREE char *line = NULL;
    size_t size = 0, key_len = strlen(key);
    while (getline(&line, &size, f) >= 0) {
        if (strncmp(line, key, key_len) != 0 || line[key_len] != ':')
            continue;
        char *end;
        errno = 0;
        uint64_t number = strtoull(line + key_len + 1, &end, base);
        if (errno || end == line + key_len + 1)
            return -EINVAL;
        *value = number;
        return 0;
    }
    return -ENOENT;
}
