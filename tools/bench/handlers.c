/*
 * Theory of operation
 *
 * What Firecracker's example page-fault handlers do (src/firecracker/examples/uffd, read
 * at 1.17-dev), so that a benchmark can hold them against vmsnap with no Firecracker and no Rust at
 * hand:
 *
 * - The memory file is opened first. The socket takes one connection; once it is there all of the
 *   file is mapped, private, read-only and populated (since 1.14; before that it was mapped alone:
 *   on_demand_lazy). One thread polls the connection and the userfaultfd that came with the
 * message.
 * - on_demand reads all events that wait, one per read(). A fault: UFFDIO_COPY of its page. A range
 *   that was given back (EVENT_REMOVE) is unregistered, so the kernel fills it with zeros from then
 *   on. A copy that EAGAIN forbids is tried again after the next events.
 * - fault_all answers a fault by UFFDIO_COPY of every region, whole, in one call each. It knows no
 *   other event, and ends at one.
 * - EEXIST is no failure. What is not expected ends the handler and its VM; here it is counted.
 *
 * Not as there: ours ends when stdin is closed, and takes one handoff.
 */
#include "tools/bench/handlers.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/uffd.h"
#include "restore/listen/peer_message.h"

#define MESSAGE_BYTES 1024 /* as much as they read */
#define MAX_EVENTS 256     /* a vCPU has one fault at a time, the VMM one range */

struct handler;

struct handler_kind {
    const char *name;
    int map_flags;
    void (*take_events)(struct handler *h);
};

struct handler {
    const struct handler_kind *kind;
    int connection, uffd;
    const unsigned char *content; /* `bytes` of it */
    uint64_t bytes;
    struct peer_message message;
    struct uffd_msg waiting[MAX_EVENTS]; /* events that are not dealt with yet */
    unsigned n_waiting;
    uint64_t faults, copied_bytes, removed, failures;
    uint64_t connected_ns, mapped_ns, first_ns, complete_ns;
};

static void note_copied(struct handler *h, uint64_t bytes)
{
    h->copied_bytes += bytes;
    if (h->first_ns == 0)
        h->first_ns = clock_monotonic_ns();
    if (h->copied_bytes == h->bytes)
        h->complete_ns = clock_monotonic_ns();
}

/* [hva, hva + bytes) of a region. False: an event has to be read before. */
static bool copy(struct handler *h, const struct peer_region *r, uint64_t hva, uint64_t bytes)
{
    uint64_t done;
    int ret = uffd_copy(h->uffd, hva, h->content + r->offset + (hva - r->hva), bytes, true, &done);
    note_copied(h, ret ? done : bytes);
    if (ret && ret != -EEXIST && ret != -EAGAIN)
        h->failures++;
    return ret != -EAGAIN;
}

/* Of the page that an address lies in, as on_demand. */
static bool copy_page(struct handler *h, uint64_t address)
{
    for (uint32_t i = 0; i < h->message.n_regions; i++) {
        const struct peer_region *r = &h->message.regions[i];
        uint64_t hva = address & ~(r->page_bytes - 1);
        if (hva - r->hva < r->bytes)
            return copy(h, r, hva, r->page_bytes);
    }
    h->failures++;
    return true;
}

static void give_back(struct handler *h, const struct uffd_msg *m)
{
    struct uffdio_range range = {.start = m->arg.remove.start,
                                 .len = m->arg.remove.end - m->arg.remove.start};
    h->removed++;
    h->failures += uffd_unregister_pieces(h->uffd, range.start, range.len) != 0;
}

/* False: not now. */
static bool take_event(struct handler *h, const struct uffd_msg *m)
{
    if (m->event == UFFD_EVENT_PAGEFAULT)
        return copy_page(h, m->arg.pagefault.address);
    if (m->event == UFFD_EVENT_REMOVE)
        give_back(h, m);
    else
        h->failures++;
    return true;
}

static void read_events(struct handler *h)
{
    while (h->n_waiting < MAX_EVENTS) {
        struct uffd_msg *m = &h->waiting[h->n_waiting];
        int n = uffd_read_messages(h->uffd, m, 1);
        h->failures += n < 0;
        if (n <= 0)
            return;
        h->faults += m->event == UFFD_EVENT_PAGEFAULT;
        h->n_waiting++;
    }
}

static void take_events_on_demand(struct handler *h)
{
    do {
        unsigned kept = 0;
        read_events(h);
        for (unsigned i = 0; i < h->n_waiting; i++)
            if (!take_event(h, &h->waiting[i]))
                h->waiting[kept++] = h->waiting[i];
        h->n_waiting = kept;
    } while (h->n_waiting > 0);
}

static void take_events_fault_all(struct handler *h)
{
    struct uffd_msg m;
    int n = uffd_read_messages(h->uffd, &m, 1);
    if (n != 1 || m.event != UFFD_EVENT_PAGEFAULT) {
        h->failures += n != 0;
        return;
    }
    h->faults++;
    for (uint32_t i = 0; i < h->message.n_regions; i++) {
        const struct peer_region *r = &h->message.regions[i];
        copy(h, r, r->hva, r->bytes);
    }
}

static const struct handler_kind kinds[] = {
    {"on_demand", MAP_PRIVATE | MAP_POPULATE, take_events_on_demand},
    {"on_demand_lazy", MAP_PRIVATE, take_events_on_demand},
    {"fault_all", MAP_PRIVATE | MAP_POPULATE, take_events_fault_all},
};

const struct handler_kind *handlers_find(const char *name)
{
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (strcmp(kinds[i].name, name) == 0)
            return &kinds[i];
    return NULL;
}

/* ---- the handoff ---- */

static int listen_at(const char *path, struct error *e)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(a.sun_path))
        return error_set(e, VMSNAP_EXIT_USAGE, ENAMETOOLONG, "%s", path);
    memcpy(a.sun_path, path, strlen(path) + 1);
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) || listen(fd, 1))
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "cannot listen at %s", path);
    return take_fd(&fd);
}

/* The userfaultfd that came with `m`, or -1. */
static int fd_of(struct msghdr *m)
{
    const struct cmsghdr *c = CMSG_FIRSTHDR(m);
    int fd = -1;
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
        c->cmsg_len == CMSG_LEN(sizeof(fd)))
        memcpy(&fd, CMSG_DATA(c), sizeof(fd));
    return fd;
}

static int take_message(struct handler *h, struct error *e)
{
    char bytes[MESSAGE_BYTES];
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec v = {.iov_base = bytes, .iov_len = sizeof(bytes)};
    struct msghdr m = {
        .msg_iov = &v, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(h->connection, &m, MSG_CMSG_CLOEXEC);
    h->uffd = n > 0 ? fd_of(&m) : -1;
    if (h->uffd < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, EPROTO, "no handoff came");
    int ret = peer_message_parse(bytes, (size_t)n, &h->message, e);
    if (ret)
        return ret == -EAGAIN ? error_set(e, VMSNAP_EXIT_FAILED, EPROTO, "half a handoff") : ret;
    const struct peer_region *last = &h->message.regions[h->message.n_regions - 1];
    return last->offset + last->bytes == h->bytes
               ? 0
               : error_set(e, VMSNAP_EXIT_FAILED, EPROTO,
                           "the VM's memory is not of the file's size");
}

static int map_content(struct handler *h, int fd, struct error *e)
{
    void *content = mmap(NULL, h->bytes, PROT_READ, h->kind->map_flags, fd, 0);
    if (content == MAP_FAILED)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "cannot map the memory file");
    h->content = content;
    h->mapped_ns = clock_monotonic_ns();
    return 0;
}

/* Until stdin is closed. */
static int serve(struct handler *h, struct error *e)
{
    struct pollfd fds[3] = {{.fd = STDIN_FILENO, .events = POLLIN},
                            {.fd = h->connection, .events = POLLIN},
                            {.fd = -1, .events = POLLIN}};
    for (;;) {
        poll(fds, 3, -1);
        if (fds[0].revents)
            return 0;
        if (fds[1].revents) {
            int ret = h->uffd < 0 ? take_message(h, e) : 0;
            if (ret)
                return ret;
            fds[2].fd = h->uffd;
            if (fds[1].revents & POLLHUP)
                fds[1].fd = -1;
        }
        if (fds[2].revents & POLLIN)
            h->kind->take_events(h);
    }
}

static int accept_and_serve(struct handler *h, int listener, int fd, struct error *e)
{
    struct pollfd fds[2] = {{.fd = STDIN_FILENO, .events = POLLIN},
                            {.fd = listener, .events = POLLIN}};
    poll(fds, 2, -1);
    if (fds[0].revents)
        return 0;
    h->connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (h->connection < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "cannot accept");
    h->connected_ns = clock_monotonic_ns();
    int ret = map_content(h, fd, e);
    return ret ? ret : serve(h, e);
}

static void print_summary(const struct handler *h)
{
    printf("{\"type\": \"summary\", \"faults\": %" PRIu64 ", \"copied_bytes\": %" PRIu64
           ", \"removed\": %" PRIu64 ", \"failures\": %" PRIu64 ", \"connected_ns\": %" PRIu64
           ", \"mapped_ns\": %" PRIu64 ", \"first_ns\": %" PRIu64 ", \"complete_ns\": %" PRIu64
           "}\n",
           h->faults, h->copied_bytes, h->removed, h->failures, h->connected_ns, h->mapped_ns,
           h->first_ns, h->complete_ns);
}

static void let_go(struct handler *h)
{
    if (h->content)
        munmap((void *)h->content, h->bytes);
    if (h->uffd >= 0)
        close(h->uffd);
    if (h->connection >= 0)
        close(h->connection);
}

int handlers_run(const struct handler_kind *kind, const char *socket_path, const char *path,
                 struct error *e)
{
    static struct handler h; /* once per process, and too large for a stack */
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st))
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "cannot read %s", path);
    if (st.st_size <= 0)
        return error_set(e, VMSNAP_EXIT_FAILED, EINVAL, "%s holds no memory", path);
    h = (struct handler){.kind = kind, .connection = -1, .uffd = -1, .bytes = (uint64_t)st.st_size};
    CLEANUP_FD int listener = listen_at(socket_path, e);
    if (listener < 0)
        return listener;
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("{\"type\": \"ready\"}");
    int ret = accept_and_serve(&h, listener, fd, e);
    if (ret == 0)
        print_summary(&h);
    let_go(&h);
    return ret;
}
