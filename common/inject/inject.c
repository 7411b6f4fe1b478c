/*
 * inject.c - the public side of injection. Each injector has a thread of its own that does all
 * its ptrace calls, one request at a time, and ends with it: whatever that thread could not let go
 * of (a thread of the target that does not stop, one stuck in an injected call) the kernel
 * releases at its end. It is joined before inject_end() returns, so no helper of any kind is left.
 */
#include "common/inject/inject.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/inject/tracer.h"
#include "common/kernel.h"
#include "common/testhook.h"
#include "common/uffd.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u /* Linux 6.3 */
#endif

#define MS_NS 1000000ull
#define TRACER_STACK_BYTES (256u << 10)
/* A thread of the target is held for so long at a time, where the work can be cut. */
#define HOLD_NS (2 * MS_NS)

enum request { REQUEST_ATTACH, REQUEST_CALL, REQUEST_DETACH };

struct injector {
    struct tracer tracer;
    const struct target *target;
    uint64_t timeout_ns;
    pthread_t thread;
    sem_t asked, answered;
    enum request request;
    long nr;
    uint64_t args[6];
    int64_t result;
    struct error *error;
    int ret;
};

static void wait_for(sem_t *sem)
{
    while (sem_wait(sem) != 0)
        ; /* EINTR */
}

static int serve_request(struct injector *inj)
{
    uint64_t deadline_ns = clock_monotonic_ns() + inj->timeout_ns;
    switch (inj->request) {
    case REQUEST_ATTACH:
        return tracer_attach(&inj->tracer, inj->target, deadline_ns, inj->error);
    case REQUEST_CALL:
        return tracer_call(&inj->tracer, inj->nr, inj->args, &inj->result);
    case REQUEST_DETACH:
        return tracer_detach(&inj->tracer, deadline_ns);
    }
    return -EINVAL;
}

/* The tracing thread. Ends after a detach, or when the attach failed. */
static void *serve(void *opaque)
{
    struct injector *inj = opaque;
    for (bool more = true; more;) {
        wait_for(&inj->asked);
        inj->ret = serve_request(inj);
        more = inj->request == REQUEST_CALL || (inj->request == REQUEST_ATTACH && inj->ret == 0);
        sem_post(&inj->answered);
    }
    return NULL;
}

/* All signals stay with the program's other threads. */
static int start_thread(struct injector *inj)
{
    sigset_t all, before;
    pthread_attr_t attr;
    sigfillset(&all);
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, TRACER_STACK_BYTES);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int err = pthread_create(&inj->thread, &attr, serve, inj);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return -err;
}

static int ask(struct injector *inj, enum request request, struct error *e)
{
    inj->request = request;
    inj->error = e;
    sem_post(&inj->asked);
    wait_for(&inj->answered);
    return inj->ret;
}

/* The thread must have been asked for its last. */
static void injector_free(struct injector *inj)
{
    pthread_join(inj->thread, NULL);
    x86_state_free(&inj->tracer.saved);
    sem_destroy(&inj->asked);
    sem_destroy(&inj->answered);
    free(inj);
}

int inject_begin(struct injector **out, const struct target *t, int timeout_ms, struct error *e)
{
    if (t->pid == getpid())
        return error_set(e, VMSNAP_EXIT_TARGET, EINVAL, "process %d is vmsnap itself", t->pid);
    struct injector *inj = calloc(1, sizeof(*inj));
    if (!inj)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "attaching");
    inj->target = t;
    inj->timeout_ns = (uint64_t)timeout_ms * MS_NS;
    inj->tracer.call_timeout_ns = inj->timeout_ns;
    sem_init(&inj->asked, 0, 0);
    sem_init(&inj->answered, 0, 0);
    int r = start_thread(inj);
    if (r) {
        free(inj);
        return error_set(e, VMSNAP_EXIT_FAILED, -r, "can't start a thread to attach with");
    }
    r = ask(inj, REQUEST_ATTACH, e);
    if (r) {
        injector_free(inj);
        return r;
    }
    *out = inj;
    return 0;
}

int inject_syscall(struct injector *inj, int64_t *result, long nr, uint64_t a0, uint64_t a1,
                   uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5)
{
    const uint64_t args[6] = {a0, a1, a2, a3, a4, a5};
    inj->nr = nr;
    memcpy(inj->args, args, sizeof(args));
    int r = ask(inj, REQUEST_CALL, NULL);
    *result = inj->result;
    return r;
}

uint64_t inject_scratch(const struct injector *inj)
{
    return inj->tracer.frame.scratch;
}

int inject_end(struct injector *inj, struct error *e)
{
    pid_t pid = inj->target->pid;
    int r = ask(inj, REQUEST_DETACH, e);
    injector_free(inj);
    if (r == 0)
        return 0;
    if (r == -ESRCH)
        return error_set(e, VMSNAP_EXIT_TARGET, ESRCH, "process %d ended while attached to",
                         (int)pid);
    return error_set(e, r == -ETIMEDOUT ? VMSNAP_EXIT_TIMEOUT : VMSNAP_EXIT_FAILED, -r,
                     "detaching from process %d (its thread goes on by itself)", (int)pid);
}

/* A failed injection, in words; ends the injector. Keeps the first error. */
static int give_up(struct injector *inj, int r, const char *what, struct error *e)
{
    enum vmsnap_exit code = r == -ETIMEDOUT ? VMSNAP_EXIT_TIMEOUT : VMSNAP_EXIT_TARGET;
    pid_t pid = inj->target->pid;
    inject_end(inj, NULL);
    return error_set(e, code, -r, "process %d: %s", (int)pid, what);
}

/* One call whose result is all there is to know: the result, or what went wrong with injecting. */
static int64_t call(struct injector *inj, long nr, uint64_t a0, uint64_t a1, uint64_t a2,
                    uint64_t a3)
{
    int64_t result;
    int r = inject_syscall(inj, &result, nr, a0, a1, a2, a3, 0, 0);
    return r ? r : result;
}

/* Buffers of the socket way, in the target's scratch memory. */
struct passage {
    struct msghdr msg;
    struct iovec iov;
    int socks[2];
    char byte;
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
};
_Static_assert(sizeof(struct passage) <= INJECT_SCRATCH_BYTES, "fits");

/* Sends `fd` over the socket `sock` of ours, with one byte. */
static int send_fd(int sock, int fd)
{
    char byte = 0;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.space,
                         .msg_controllen = sizeof(control.space)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof(fd));
    return sendmsg(sock, &msg, MSG_NOSIGNAL) == 1 ? 0 : -errno;
}

/* Writes a message header into the scratch memory, for recvmsg() there. */
static int write_passage(struct injector *inj)
{
    uint64_t at = inject_scratch(inj);
    struct passage p = {0};
    p.iov.iov_base = (void *)(uintptr_t)(at + offsetof(struct passage, byte));
    p.iov.iov_len = 1;
    p.msg.msg_iov = (void *)(uintptr_t)(at + offsetof(struct passage, iov));
    p.msg.msg_iovlen = 1;
    p.msg.msg_control = (void *)(uintptr_t)(at + offsetof(struct passage, control));
    p.msg.msg_controllen = sizeof(p.control);
    ssize_t n = target_write(inj->target, at, &p, sizeof(p));
    return n == (ssize_t)sizeof(p) ? 0 : -EFAULT;
}

/* The descriptor number that recvmsg() in the target got. */
static int64_t read_passed_fd(struct injector *inj)
{
    struct passage p;
    int fd;
    if (target_read(inj->target, inject_scratch(inj), &p, sizeof(p)) != (ssize_t)sizeof(p))
        return -EFAULT;
    if (p.msg.msg_controllen < CMSG_LEN(sizeof(int)) || p.control.align.cmsg_type != SCM_RIGHTS)
        return -ENOMSG;
    memcpy(&fd, p.control.space + CMSG_LEN(0), sizeof(fd));
    return fd;
}

/* Through an existing pair of sockets in the target: `fd`'s number there or -errno. */
static int64_t pass_through_sockets(struct injector *inj, const int socks[2], int fd)
{
    CLEANUP_FD int ours = target_get_fd(inj->target, socks[0]);
    if (ours < 0)
        return ours;
    int r = write_passage(inj);
    if (r == 0)
        r = send_fd(ours, fd);
    if (r)
        return r;
    int64_t n = call(inj, SYS_recvmsg, (uint64_t)socks[1], inject_scratch(inj),
                     MSG_CMSG_CLOEXEC | MSG_DONTWAIT, 0);
    return n == 1 ? read_passed_fd(inj) : n < 0 ? n : -EBADMSG;
}

/* Gives the target a copy of our descriptor `fd`: its number there or -errno. */
static int64_t pass_fd(struct injector *inj, int fd)
{
    uint64_t at = inject_scratch(inj) + offsetof(struct passage, socks);
    int64_t r = call(inj, SYS_socketpair, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, at);
    if (r < 0)
        return r;
    int socks[2];
    if (target_read(inj->target, at, socks, sizeof(socks)) != (ssize_t)sizeof(socks))
        return -EFAULT;
    TESTHOOK_POINT("inject-sockets-made");
    int64_t there = pass_through_sockets(inj, socks, fd);
    for (int i = 0; i < 2; i++) {
        r = call(inj, SYS_close, (uint64_t)socks[i], 0, 0, 0);
        if (r < 0 && there >= 0)
            there = r;
    }
    return there;
}

/* The target may not call userfaultfd(): it gets a descriptor of /dev/userfaultfd, opened by us,
 * and asks that. */
static int64_t make_through_device(struct injector *inj)
{
    CLEANUP_FD int dev = kernel_open_dev_userfaultfd();
    if (dev < 0)
        return dev;
    int64_t there = pass_fd(inj, dev);
    if (there < 0)
        return there;
    int64_t uffd =
        call(inj, SYS_ioctl, (uint64_t)there, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK, 0);
    int64_t closed = call(inj, SYS_close, (uint64_t)there, 0, 0, 0);
    return uffd >= 0 && closed < 0 ? closed : uffd;
}

static int kernel_refused(struct injector *inj, int64_t result, struct error *e)
{
    pid_t pid = inj->target->pid;
    inject_end(inj, NULL);
    error_set(e, VMSNAP_EXIT_KERNEL, (int)-result, "process %d: the kernel gives it no userfaultfd",
              (int)pid);
    if (result == -ENOENT || result == -EPERM || result == -EACCES)
        error_hint(e, "it may not create one itself, and /dev/userfaultfd (Linux 6.1) is not there "
                      "or not ours to open: run vmsnap as root, or set "
                      "vm.unprivileged_userfaultfd=1");
    return (int)result;
}

/* Fetches the target's descriptor `there`, and closes it there unless it is to be kept. */
static int fetch(struct injector *inj, int there, bool keep, int *fd)
{
    CLEANUP_FD int ours = target_get_fd(inj->target, there);
    if (ours < 0)
        return ours;
    if (!keep) {
        int64_t r = call(inj, SYS_close, (uint64_t)there, 0, 0, 0);
        if (r < 0)
            return (int)r;
    }
    *fd = take_fd(&ours);
    return 0;
}

int inject_userfaultfd(const struct target *t, int *fd, int *keep, int timeout_ms, struct error *e)
{
    struct injector *inj;
    int r = inject_begin(&inj, t, timeout_ms, e);
    if (r)
        return r;
    int64_t there = call(inj, SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK, 0, 0, 0);
    if (there == -EPERM)
        there = make_through_device(inj);
    if (there == -ESRCH || there == -ETIMEDOUT)
        return give_up(inj, (int)there, "creating a userfaultfd in it", e);
    if (there < 0 || there > INT_MAX)
        return kernel_refused(inj, there, e);
    TESTHOOK_POINT("inject-fd-made");
    r = fetch(inj, (int)there, keep != NULL, fd);
    if (r)
        return give_up(inj, r, "fetching the userfaultfd from it", e);
    if (keep)
        *keep = (int)there;
    r = inject_end(inj, e);
    if (r) {
        close(*fd);
        *fd = -1;
    }
    return r;
}

/* Pieces from *done on, for as long as the thread may be held. */
int inject_memfd(const struct target *t, const char *name, int *keep, int timeout_ms,
                 struct error *e)
{
    struct injector *inj;
    int r = inject_begin(&inj, t, timeout_ms, e);
    if (r)
        return r;
    uint64_t at = inject_scratch(inj);
    size_t len = strlen(name) + 1;
    int64_t there = -EFAULT;
    if (target_write(t, at, name, len) == (ssize_t)len) {
        uint64_t flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
        there = call(inj, SYS_memfd_create, at, flags | MFD_NOEXEC_SEAL, 0, 0);
        if (there == -EINVAL)
            there = call(inj, SYS_memfd_create, at, flags, 0, 0);
    }
    if (there < 0 || there > INT_MAX)
        return give_up(inj, there < 0 ? (int)there : -EPROTO, "making a memfd in it", e);
    *keep = (int)there;
    return inject_end(inj, e);
}

int inject_give_fd(const struct target *t, int fd, int *there, int timeout_ms, struct error *e)
{
    struct injector *inj;
    int r = inject_begin(&inj, t, timeout_ms, e);
    if (r)
        return r;
    int64_t number = pass_fd(inj, fd);
    if (number < 0)
        return give_up(inj, (int)number, "passing a descriptor in", e);
    *there = (int)number;
    return inject_end(inj, e);
}

static int madvise_some(struct injector *inj, uint64_t start, uint64_t len, int advice,
                        uint64_t piece, uint64_t *done)
{
    uint64_t until_ns = clock_monotonic_ns() + HOLD_NS;
    do {
        uint64_t n = len - *done < piece ? len - *done : piece;
        int64_t r = call(inj, SYS_madvise, start + *done, n, (uint64_t)advice, 0);
        if (r < 0)
            return (int)r;
        *done += n;
    } while (*done < len && clock_monotonic_ns() < until_ns);
    return 0;
}

int inject_madvise(const struct target *t, uint64_t start, uint64_t len, int advice, uint64_t piece,
                   int timeout_ms, struct error *e)
{
    uint64_t done = 0;
    if (piece == 0)
        piece = len;
    while (done < len) {
        struct injector *inj;
        int r = inject_begin(&inj, t, timeout_ms, e);
        if (r)
            return r;
        r = madvise_some(inj, start, len, advice, piece, &done);
        if (r)
            return give_up(inj, r, "madvise() in it", e);
        r = inject_end(inj, e);
        if (r)
            return r;
    }
    return 0;
}

int inject_close_fd(const struct target *t, int fd, int timeout_ms, struct error *e)
{
    struct injector *inj;
    int r = inject_begin(&inj, t, timeout_ms, e);
    if (r)
        return r;
    int64_t result = call(inj, SYS_close, (uint64_t)fd, 0, 0, 0);
    if (result < 0)
        return give_up(inj, (int)result, "closing a descriptor in it", e);
    return inject_end(inj, e);
}
