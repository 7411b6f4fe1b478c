/*
 * uffd.c - see uffd.h. What Firecracker does, by version (read in its source, 1.4 to 1.17-dev;
 * src/vmm/src/persist.rs):
 *
 * - One userfaultfd, from /dev/userfaultfd where there is one (a jail's user may open that), else
 * by the system call; O_CLOEXEC | O_NONBLOCK, not limited to user mode; each region is registered
 * by itself, for missing pages only. EVENT_REMOVE is asked for always since 1.12, before that only
 * if the VM has a balloon.
 * - One sendmsg() of a bare JSON array without a terminator, the userfaultfd beside it. Keys in
 * this order: base_host_virt_addr, size, offset; since 1.12 page_size and page_size_kib, 1.7
 * to 1.11 page_size_kib alone, before that none. Both are in bytes. `offset` counts up from 0.
 * - Since 1.12 the connection stays open for life. Before, it is closed right after the message.
 * - It never waits for an answer: next it builds the VM, which reads and writes guest memory.
 */
#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static int new_uffd(void)
{
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0)
        return errno == ENOENT ? (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK) : -1;
    int fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK), saved = errno;
    close(device);
    errno = saved;
    return fd;
}

static int make_uffd(const struct options *o)
{
    struct uffdio_api api = {.api = UFFD_API,
                             .features = o->no_remove_events ? 0 : UFFD_FEATURE_EVENT_REMOVE};
    int fd = new_uffd();
    if (fd >= 0 && ioctl(fd, UFFDIO_API, &api) != 0) {
        int saved = errno;
        close(fd);
        errno = saved;
        return -1;
    }
    return fd;
}

static bool register_memory(int uffd, const struct memory *m)
{
    for (unsigned i = 0; i < m->n_regions; i++) {
        const struct memory_region *r = &m->regions[i];
        struct uffdio_register registration = {
            .range = {.start = (uintptr_t)r->hva, .len = r->bytes},
            .mode = UFFDIO_REGISTER_MODE_MISSING,
        };
        if (ioctl(uffd, UFFDIO_REGISTER, &registration) != 0)
            return false;
    }
    return true;
}

/* The message: to be given to free(). */
static char *describe(const struct memory *m, enum handoff_form form)
{
    json_t *all = json_array();
    json_int_t page = m->kind == MEMORY_HUGETLB ? 2 << 20 : GUEST_PAGE_BYTES;
    for (unsigned i = 0; i < m->n_regions; i++) {
        const struct memory_region *r = &m->regions[i];
        json_t *one =
            json_pack("{s:I,s:I,s:I}", "base_host_virt_addr", (json_int_t)(uintptr_t)r->hva, "size",
                      (json_int_t)r->bytes, "offset", (json_int_t)r->offset);
        if (form == HANDOFF_PAGE_SIZE)
            json_object_set_new(one, "page_size", json_integer(page));
        if (form != HANDOFF_NONE)
            json_object_set_new(one, "page_size_kib", json_integer(page));
        json_array_append_new(all, one);
    }
    char *text = json_dumps(all, JSON_COMPACT);
    json_decref(all);
    return text;
}

/* A connection, or -1. */
static int connect_to(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(a.sun_path))
        return errno = ENAMETOOLONG, -1;
    strcpy(a.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof(a)) != 0) {
        int saved = errno;
        close(fd);
        errno = saved;
        return -1;
    }
    return fd;
}

static bool send_message(int to, const char *text, int uffd)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)),
                            .cmsg_level = SOL_SOCKET,
                            .cmsg_type = SCM_RIGHTS}};
    struct iovec v = {.iov_base = (void *)(uintptr_t)text, .iov_len = strlen(text)};
    struct msghdr m = {
        .msg_iov = &v, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    memcpy(CMSG_DATA(&control.header), &uffd, sizeof(uffd));
    return sendmsg(to, &m, MSG_NOSIGNAL) == (ssize_t)v.iov_len;
}

/* A stream has no empty messages: who reads one has met a connection on which nothing came. */
static void send_nothing(const char *path)
{
    int fd = connect_to(path);
    if (fd >= 0)
        close(fd);
}

int uffd_open(const struct vm *vm, char *why, size_t why_bytes)
{
    int uffd = make_uffd(&vm->o);
    if (uffd >= 0 && register_memory(uffd, &vm->memory))
        return uffd;
    snprintf(why, why_bytes, "no userfaultfd for guest memory: %s", strerror(errno));
    return -1;
}

bool uffd_hand_off(const struct vm *vm, int uffd, char *why, size_t why_bytes)
{
    const char *path = vm->o.uffd_backend;
    if (vm->o.handoff_early_empty)
        send_nothing(path);
    char *text = describe(&vm->memory, vm->o.handoff_form);
    int to = connect_to(path);
    bool ok = text && to >= 0 && send_message(to, text, uffd);
    if (!ok)
        snprintf(why, why_bytes, "cannot hand memory over to %s: %s", path, strerror(errno));
    if (to >= 0 && (!ok || vm->o.handoff_closes))
        close(to);
    free(text);
    return ok;
}
