/* blocking_kinds.c - the kinds of system call: their arguments, who wakes them, what is right. */
#include "blocking.h"

#include <errno.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "ktest.h"

#define NAP_NS 60000000l
#define LONG_S 30 /* a timeout that must not run out */

static struct pollfd pollfds[1];
static struct timespec interval, remaining;
static struct epoll_event events[4];
static char buffer[16];
static uint64_t mask_arg;
static struct {
    const void *mask;
    size_t bytes;
} pselect_mask;
static fd_set read_set;

static void wake_pipe(struct blocked *b)
{
    if (write(b->pipe[1], "x", 1) != 1)
        abort();
}

static const char *expect(int64_t result, int64_t wanted)
{
    static char text[96];
    if (result == wanted)
        return NULL;
    snprintf(text, sizeof(text), "result %lld, should be %lld", (long long)result,
             (long long)wanted);
    return text;
}

static const char *verify_ready(struct blocked *b, int64_t result)
{
    char byte;
    const char *wrong = expect(result, 1);
    if (!wrong && read(b->pipe[0], &byte, 1) != 1)
        wrong = "nothing to read";
    return wrong;
}

static const char *verify_one(struct blocked *b, int64_t result)
{
    (void)b;
    return expect(result, 1);
}

static const char *verify_zero(struct blocked *b, int64_t result)
{
    (void)b;
    return expect(result, 0);
}

static const char *verify_slept(struct blocked *b, int64_t result)
{
    (void)b;
    if (result == 0 && clock_monotonic_ns() - blocked_since_ns < (uint64_t)NAP_NS)
        return "returned too early";
    return expect(result, 0);
}

static void args_ppoll(struct blocked *b, uint64_t a[6])
{
    pollfds[0] = (struct pollfd){.fd = b->pipe[0], .events = POLLIN};
    interval = (struct timespec){.tv_sec = LONG_S};
    a[0] = (uintptr_t)pollfds;
    a[1] = 1;
    a[2] = (uintptr_t)&interval;
    /* another mask for as long as it waits */
    mask_arg = 1ull << (SIGUSR2 - 1);
    a[3] = (uintptr_t)&mask_arg;
    a[4] = sizeof(mask_arg);
}

static void args_poll(struct blocked *b, uint64_t a[6])
{
    pollfds[0] = (struct pollfd){.fd = b->pipe[0], .events = POLLIN};
    a[0] = (uintptr_t)pollfds;
    a[1] = 1;
    a[2] = (uint64_t)-1;
}

static void args_poll_timed(struct blocked *b, uint64_t a[6])
{
    args_poll(b, a);
    a[2] = NAP_NS / 1000000;
}

static void args_pselect(struct blocked *b, uint64_t a[6])
{
    FD_ZERO(&read_set);
    FD_SET(b->pipe[0], &read_set);
    mask_arg = 1ull << (SIGUSR2 - 1);
    pselect_mask.mask = &mask_arg;
    pselect_mask.bytes = sizeof(mask_arg);
    a[0] = (uint64_t)b->pipe[0] + 1;
    a[1] = (uintptr_t)&read_set;
    a[5] = (uintptr_t)&pselect_mask;
}

static void args_futex(struct blocked *b, uint64_t a[6])
{
    a[0] = (uintptr_t)&b->futex;
    a[1] = FUTEX_WAIT;
    a[2] = 0;
}

static void args_futex_timed(struct blocked *b, uint64_t a[6])
{
    args_futex(b, a);
    interval = (struct timespec){.tv_sec = LONG_S};
    a[3] = (uintptr_t)&interval;
}

static void wake_futex(struct blocked *b)
{
    /* The value stays: it can be asleep, or about to be. */
    for (int i = 0; i < 20000; i++) {
        if (syscall(SYS_futex, &b->futex, FUTEX_WAKE, 1, NULL, NULL, 0) == 1)
            return;
        ktest_nap();
    }
}

static void args_read(struct blocked *b, uint64_t a[6])
{
    a[0] = (uint64_t)b->pipe[0];
    a[1] = (uintptr_t)buffer;
    a[2] = sizeof(buffer);
}

static void args_nanosleep(struct blocked *b, uint64_t a[6])
{
    (void)b;
    interval = (struct timespec){.tv_nsec = NAP_NS};
    a[0] = (uintptr_t)&interval;
    a[1] = (uintptr_t)&remaining;
}

static void args_clock_nanosleep(struct blocked *b, uint64_t a[6])
{
    args_nanosleep(b, a);
    a[3] = a[1];
    a[2] = a[0];
    a[0] = CLOCK_MONOTONIC;
    a[1] = 0;
}

static bool setup_epoll(struct blocked *b)
{
    struct epoll_event ev = {.events = EPOLLIN};
    b->epoll = epoll_create1(EPOLL_CLOEXEC);
    return b->epoll >= 0 && epoll_ctl(b->epoll, EPOLL_CTL_ADD, b->pipe[0], &ev) == 0;
}

static void args_epoll(struct blocked *b, uint64_t a[6])
{
    a[0] = (uint64_t)b->epoll;
    a[1] = (uintptr_t)events;
    a[2] = 4;
    a[3] = LONG_S * 1000;
}

static bool setup_sigtimedwait(struct blocked *b)
{
    (void)b;
    sigaddset(&blocked_mask, SIGUSR1);
    return sigprocmask(SIG_SETMASK, &blocked_mask, NULL) == 0;
}

static void args_sigtimedwait(struct blocked *b, uint64_t a[6])
{
    (void)b;
    mask_arg = 1ull << (SIGUSR1 - 1);
    interval = (struct timespec){.tv_sec = LONG_S};
    a[0] = (uintptr_t)&mask_arg;
    a[2] = (uintptr_t)&interval;
    a[3] = sizeof(mask_arg);
}

static void wake_signal(struct blocked *b)
{
    kill(b->pid, SIGUSR1);
}

static const char *verify_signal(struct blocked *b, int64_t result)
{
    (void)b;
    return expect(result, SIGUSR1);
}

static void args_sigsuspend(struct blocked *b, uint64_t a[6])
{
    (void)b;
    mask_arg = 0;
    a[0] = (uintptr_t)&mask_arg;
    a[1] = sizeof(mask_arg);
}

static const char *verify_eintr(struct blocked *b, int64_t result)
{
    (void)b;
    return expect(result, -EINTR);
}

static bool setup_socket(struct blocked *b)
{
    b->listener = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un sa = {.sun_family = AF_UNIX}; /* autobind: an abstract name */
    return b->listener >= 0 && bind(b->listener, (void *)&sa, sizeof(sa.sun_family)) == 0 &&
           listen(b->listener, 4) == 0;
}

static void args_accept(struct blocked *b, uint64_t a[6])
{
    a[0] = (uint64_t)b->listener;
}

/* The test has no listener of its own: it looks the name up in the process. */
static void wake_accept(struct blocked *b)
{
    struct sockaddr_un sa;
    socklen_t len = sizeof(sa);
    int pidfd = (int)syscall(SYS_pidfd_open, b->pid, 0);
    int copy = (int)syscall(SYS_pidfd_getfd, pidfd, b->listener, 0);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (copy < 0 || getsockname(copy, (void *)&sa, &len) != 0 || connect(fd, (void *)&sa, len) != 0)
        abort();
    close(fd);
    close(copy);
    close(pidfd);
}

static const char *verify_accept(struct blocked *b, int64_t result)
{
    (void)b;
    if (result < 0)
        return expect(result, 0);
    close((int)result);
    return NULL;
}

static void args_recvfrom(struct blocked *b, uint64_t a[6])
{
    a[0] = (uint64_t)b->sock[0];
    a[1] = (uintptr_t)buffer;
    a[2] = sizeof(buffer);
}

static void wake_socket(struct blocked *b)
{
    if (send(b->sock[1], "x", 1, 0) != 1)
        abort();
}

static void args_wait4(struct blocked *b, uint64_t a[6])
{
    char byte;
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent || read(b->pipe[0], &byte, 1) != 1)
            _exit(1);
        _exit(0);
    }
    a[0] = (uint64_t)-1;
}

static const char *verify_wait4(struct blocked *b, int64_t result)
{
    (void)b;
    return result > 0 ? NULL : expect(result, 1);
}

static void *map_ring(int ring, size_t bytes, off_t at)
{
    return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring, at);
}

static bool setup_uring(struct blocked *b)
{
    struct io_uring_params p = {0};
    b->ring = (int)syscall(SYS_io_uring_setup, 4, &p);
    if (b->ring < 0)
        return false;
    size_t sq_bytes = p.sq_off.array + p.sq_entries * sizeof(uint32_t);
    size_t cq_bytes = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    char *sq = map_ring(b->ring, sq_bytes, IORING_OFF_SQ_RING);
    char *cq = map_ring(b->ring, cq_bytes, IORING_OFF_CQ_RING);
    b->uring.sqes = map_ring(b->ring, p.sq_entries * sizeof(struct io_uring_sqe), IORING_OFF_SQES);
    if (sq == MAP_FAILED || cq == MAP_FAILED || b->uring.sqes == MAP_FAILED)
        return false;
    b->uring.sq_tail = (uint32_t *)(void *)(sq + p.sq_off.tail);
    b->uring.sq_array = (uint32_t *)(void *)(sq + p.sq_off.array);
    b->uring.sq_mask = p.sq_entries - 1;
    b->uring.cq_head = (uint32_t *)(void *)(cq + p.cq_off.head);
    b->uring.cq_tail = (uint32_t *)(void *)(cq + p.cq_off.tail);
    return true;
}

/* Asks the ring to watch the pipe; the checked call then waits for that. */
static void args_uring(struct blocked *b, uint64_t a[6])
{
    uint32_t tail = *b->uring.sq_tail, slot = tail & b->uring.sq_mask;
    struct io_uring_sqe *sqe = (struct io_uring_sqe *)b->uring.sqes + slot;
    *sqe = (struct io_uring_sqe){
        .opcode = IORING_OP_POLL_ADD, .fd = b->pipe[0], .poll32_events = POLLIN};
    b->uring.sq_array[slot] = slot;
    __atomic_store_n(b->uring.sq_tail, tail + 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, b->ring, 1, 0, 0, NULL, 0) != 1)
        abort();
    a[0] = (uint64_t)b->ring;
    a[2] = 1;
    a[3] = IORING_ENTER_GETEVENTS;
}

static const char *verify_uring(struct blocked *b, int64_t result)
{
    char byte;
    const char *wrong = expect(result, 0);
    uint32_t head = *b->uring.cq_head;
    if (!wrong && __atomic_load_n(b->uring.cq_tail, __ATOMIC_ACQUIRE) == head)
        wrong = "no completion";
    __atomic_store_n(b->uring.cq_head, head + 1, __ATOMIC_RELEASE);
    if (!wrong && read(b->pipe[0], &byte, 1) != 1)
        wrong = "nothing to read";
    return wrong;
}

/* name, number, wakes itself, a stop gives EINTR, setup, arguments, wake, verify, is blocked */
const struct blocking_kind blocking_kinds[] = {
    {"ppoll", SYS_ppoll, false, false, NULL, args_ppoll, wake_pipe, verify_ready, NULL},
    {"poll", SYS_poll, false, false, NULL, args_poll, wake_pipe, verify_ready, NULL},
    {"poll-timed", SYS_poll, true, false, NULL, args_poll_timed, NULL, verify_slept, NULL},
    {"pselect6", SYS_pselect6, false, false, NULL, args_pselect, wake_pipe, verify_ready, NULL},
    {"futex", SYS_futex, false, false, NULL, args_futex, wake_futex, verify_zero, NULL},
    {"futex-timed", SYS_futex, false, false, NULL, args_futex_timed, wake_futex, verify_zero, NULL},
    {"read", SYS_read, false, false, NULL, args_read, wake_pipe, verify_one, NULL},
    {"nanosleep", SYS_nanosleep, true, false, NULL, args_nanosleep, NULL, verify_slept, NULL},
    {"clock_nanosleep", SYS_clock_nanosleep, true, false, NULL, args_clock_nanosleep, NULL,
     verify_slept, NULL},
    {"epoll_wait", SYS_epoll_wait, false, true, setup_epoll, args_epoll, wake_pipe, verify_ready,
     NULL},
    {"rt_sigtimedwait", SYS_rt_sigtimedwait, false, true, setup_sigtimedwait, args_sigtimedwait,
     wake_signal, verify_signal, NULL},
    {"rt_sigsuspend", SYS_rt_sigsuspend, false, false, setup_sigtimedwait, args_sigsuspend,
     wake_signal, verify_eintr, NULL},
    {"accept", SYS_accept, false, false, setup_socket, args_accept, wake_accept, verify_accept,
     NULL},
    {"recvfrom", SYS_recvfrom, false, false, NULL, args_recvfrom, wake_socket, verify_one, NULL},
    {"wait4", SYS_wait4, false, false, NULL, args_wait4, wake_pipe, verify_wait4, NULL},
    {"io_uring_enter", SYS_io_uring_enter, false, true, setup_uring, args_uring, wake_pipe,
     verify_uring, NULL},
};
const unsigned n_blocking_kinds = sizeof(blocking_kinds) / sizeof(blocking_kinds[0]);
