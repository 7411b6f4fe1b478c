#include "restore/read/reader.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/child.h"
#include "common/testhook.h"
#include "common/thread.h"

#define BEHIND_NICE 10
#define PAGE_BYTES 4096u /* of the page cache */

enum request_kind { READ, READ_FRESH, READ_AHEAD };

struct request {
    uint64_t offset, bytes;
    enum request_kind kind;
};

/* ---- the process ---- */

struct child {
    int image_fd, socket;
    unsigned char *buffer;
    enum reader_rank rank;
};

/* A hint: pages that are mapped or dirty stay, and so would those that are named in part. */
static void drop_cached(int fd, uint64_t offset, uint64_t bytes)
{
    uint64_t from = offset / PAGE_BYTES * PAGE_BYTES;
    uint64_t to = (offset + bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    posix_fadvise(fd, (off_t)from, (off_t)(to - from), POSIX_FADV_DONTNEED);
}

static int64_t read_record(const struct child *c, const struct request *r)
{
    TESTHOOK_POINT("reader-asked");
    if (r->kind == READ_FRESH)
        drop_cached(c->image_fd, r->offset, r->bytes);
    size_t done = 0;
    while (done < r->bytes) {
        ssize_t n =
            pread(c->image_fd, c->buffer + done, r->bytes - done, (off_t)(r->offset + done));
        if (n == 0)
            break;
        if (n < 0 && errno != EINTR)
            return -errno;
        done += n > 0 ? (size_t)n : 0;
    }
    TESTHOOK_POINT("reader-read");
    return (int64_t)done;
}

static int64_t do_request(const struct child *c, const struct request *r)
{
    if (r->kind != READ_AHEAD)
        return read_record(c, r);
    TESTHOOK_POINT("reader-ahead");
    posix_fadvise(c->image_fd, (off_t)r->offset, (off_t)r->bytes, POSIX_FADV_WILLNEED);
    return 0;
}

static void run_child(void *opaque)
{
    const struct child *c = opaque;
    prctl(PR_SET_NAME, "vmsnap-reader");
    if (c->rank == READER_BEHIND)
        thread_go_nice(0, BEHIND_NICE);
    for (;;) {
        struct request r;
        ssize_t n = recv(c->socket, &r, sizeof(r), 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n != sizeof(r) || (r.kind != READ_AHEAD && r.bytes > READER_BYTES))
            _exit(0); /* the parent has gone */
        int64_t result = do_request(c, &r);
        if (send(c->socket, &result, sizeof(result), MSG_NOSIGNAL) != sizeof(result))
            _exit(0);
    }
}

/* ---- the parent ---- */

int reader_start(struct reader *r, int image_fd, enum reader_rank rank)
{
    int sockets[2];
    *r = (struct reader){.pidfd = -1, .socket = -1};
    void *buffer =
        mmap(NULL, READER_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED)
        return -ENOMEM;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0) {
        int err = errno;
        munmap(buffer, READER_BYTES);
        return -err;
    }
    struct child c = {.image_fd = image_fd, .socket = sockets[1], .buffer = buffer, .rank = rank};
    const int keep[] = {c.image_fd, c.socket};
    int pidfd = child_fork(keep, 2, run_child, &c);
    close(sockets[1]);
    if (pidfd < 0) {
        close(sockets[0]);
        munmap(buffer, READER_BYTES);
        return pidfd;
    }
    *r = (struct reader){.pidfd = pidfd, .socket = sockets[0], .buffer = buffer};
    return 0;
}

static int ask(struct reader *r, struct request request)
{
    ssize_t n = send(r->socket, &request, sizeof(request), MSG_NOSIGNAL | MSG_DONTWAIT);
    return n == sizeof(request) ? 0 : -EOWNERDEAD;
}

int reader_advise(struct reader *r, uint64_t offset, uint64_t bytes)
{
    return ask(r, (struct request){.offset = offset, .bytes = bytes, .kind = READ_AHEAD});
}

int reader_ask(struct reader *r, uint64_t offset, uint32_t bytes, bool fresh)
{
    return ask(
        r, (struct request){.offset = offset, .bytes = bytes, .kind = fresh ? READ_FRESH : READ});
}

int reader_wait(struct reader *r, int timeout_ms, int64_t *result)
{
    struct pollfd p = {.fd = r->socket, .events = POLLIN};
    if (poll(&p, 1, timeout_ms) <= 0)
        return 0;
    ssize_t n = recv(r->socket, result, sizeof(*result), MSG_DONTWAIT);
    if (n == sizeof(*result))
        return 1;
    return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -EOWNERDEAD;
}

void reader_kill(struct reader *r)
{
    child_kill(r->pidfd);
}

int reader_end(struct reader *r, int grace_ms)
{
    if (!r->buffer)
        return 0;
    close(r->socket);
    int rc = child_end(r->pidfd, grace_ms);
    munmap(r->buffer, READER_BYTES);
    *r = (struct reader){.pidfd = -1, .socket = -1};
    return rc;
}

void reader_stop(struct reader *r)
{
    reader_end(r, READER_GRACE_MS);
}
