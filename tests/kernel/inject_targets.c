/*
 * Injection into processes of every temper: without privileges, under seccomp filters, stopped,
 * traced by another, never at rest, on a borrowed stack, held by a userfaultfd, with threads that
 * come and go.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/inject.h"
#include "common/kernel.h"
#include "common/uffd.h"
#include "ktest.h"

#define TIMEOUT_MS 5000
#define PAGE 4096ul

struct shared {
    atomic_int ready, stop, value;
    uintptr_t address;
    int fd;
};

static struct shared *shared;

static void wait_for_stop(void)
{
    while (!atomic_load(&shared->stop))
        poll(NULL, 0, 10);
}

/* Injects a userfaultfd and looks whether it works. */
static int inject_once(pid_t pid, int timeout_ms, struct error *e)
{
    struct target t;
    int fd = -1;
    int r = target_open(&t, pid, e);
    if (r)
        return r;
    r = inject_userfaultfd(&t, &fd, NULL, timeout_ms, e);
    if (r == 0)
        r = uffd_enable(fd, 0);
    if (fd >= 0)
        close(fd);
    target_close(&t);
    return r;
}

/* The child goes on to its end and finds everything in order. */
static int ends_well(pid_t pid)
{
    atomic_store(&shared->stop, 1);
    int status = ktest_reap(pid, 10000);
    KTEST_CHECK(status == 0, "the process ended with status 0x%x", status);
    return KTEST_PASS;
}

static pid_t start(int (*fn)(void *))
{
    memset(shared, 0, sizeof(*shared));
    pid_t pid = ktest_spawn(fn, NULL);
    return KTEST_WAIT(atomic_load(&shared->ready) || ktest_ended(pid)) ? pid : -1;
}

/* --- privileges ------------------------------------------------------------------------------ */

static int as_nobody(void *opaque)
{
    (void)opaque;
    if (setgid(65534) != 0 || setuid(65534) != 0)
        return 1;
    /* What vmsnap must get round: this process may not do it by itself. */
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    atomic_store(&shared->value, fd < 0 ? errno : 0);
    if (fd >= 0)
        close(fd);
    int before = dup(0);
    close(before);
    atomic_store(&shared->ready, 1);
    wait_for_stop();
    int after = dup(0);
    return after == before ? 0 : 2; /* nothing was left open */
}

static int unprivileged(const void *arg)
{
    (void)arg;
    struct error e = {0};
    KTEST_SKIP_IF(!kernel_probe()->dev_userfaultfd, "no /dev/userfaultfd");
    pid_t pid = start(as_nobody);
    if (atomic_load(&shared->value) != EPERM)
        printf("    vm.unprivileged_userfaultfd is on: the process may do it itself\n");
    for (int i = 0; i < 3; i++)
        KTEST_CHECK(inject_once(pid, TIMEOUT_MS, &e) == 0, "%s", e.message);
    return ends_well(pid);
}

static int unprivileged_without_device(const void *arg)
{
    (void)arg;
#ifndef VMSNAP_TEST_HOOKS
    KTEST_SKIP_IF(true, "built without test hooks");
#endif
    struct error e = {0};
    pid_t pid = start(as_nobody);
    KTEST_SKIP_IF(atomic_load(&shared->value) != EPERM, "the process may do it itself");
    setenv("VMSNAP_MASK_FEATURES", "dev-userfaultfd", 1);
    int r = inject_once(pid, TIMEOUT_MS, &e);
    unsetenv("VMSNAP_MASK_FEATURES");
    KTEST_CHECK(r < 0 && e.exit_code == VMSNAP_EXIT_KERNEL, "r = %d, exit code %d: %s", r,
                e.exit_code, e.message);
    return ends_well(pid);
}

/* --- seccomp --------------------------------------------------------------------------------- */

/* Lets everything pass but userfaultfd(), to which it does `action`. */
static bool filter_userfaultfd(uint32_t action)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = {.len = sizeof(code) / sizeof(code[0]), .filter = code};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0;
}

static int under_filter(void *opaque)
{
    uint32_t action = *(const uint32_t *)opaque;
    if (!filter_userfaultfd(action))
        return 1;
    atomic_store(&shared->ready, 1);
    wait_for_stop();
    /* The filter is back. */
    long fd = syscall(SYS_userfaultfd, O_CLOEXEC);
    return fd < 0 && errno == ENODEV ? 0 : 2;
}

static pid_t start_filtered(uint32_t action)
{
    memset(shared, 0, sizeof(*shared));
    pid_t pid = ktest_spawn(under_filter, &action);
    return KTEST_WAIT(atomic_load(&shared->ready) || ktest_ended(pid)) ? pid : -1;
}

static int seccomp_errno(const void *arg)
{
    (void)arg;
    struct error e = {0};
    pid_t pid = start_filtered(SECCOMP_RET_ERRNO | ENODEV);
    for (int i = 0; i < 3; i++)
        KTEST_CHECK(inject_once(pid, TIMEOUT_MS, &e) == 0, "%s", e.message);
    return ends_well(pid);
}

/* With `arg` the action: the process must die of its own call afterwards, and not of ours. */
static int seccomp_kill(const void *arg)
{
    struct error e = {0};
    pid_t pid = start_filtered(*(const uint32_t *)arg);
    for (int i = 0; i < 3; i++)
        KTEST_CHECK(inject_once(pid, TIMEOUT_MS, &e) == 0, "%s", e.message);
    KTEST_CHECK(!ktest_ended(pid), "the filter killed it for our call");
    atomic_store(&shared->stop, 1);
    int status = ktest_reap(pid, 10000);
    KTEST_CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS,
                "the filter is not back: status 0x%x", status);
    return KTEST_PASS;
}

struct kill_aim {
    pid_t pid;
    const char *point;
};

static int inject_and_die(void *opaque)
{
    const struct kill_aim *aim = opaque;
    struct error e = {0};
    setenv("VMSNAP_KILL_AT", aim->point, 1);
    return inject_once(aim->pid, TIMEOUT_MS, &e) ? 1 : 2;
}

/* Killed at every step but the one in which the filter would get to see our call. */
static int seccomp_kill_killed(const void *arg)
{
    (void)arg;
#ifndef VMSNAP_TEST_HOOKS
    KTEST_SKIP_IF(true, "built without test hooks");
#endif
    static const char *const points[] = {
        "inject-stopped",       "inject-frame-written", "inject-parked",    "inject-masked",
        "inject-after-syscall", "inject-before-detach", "inject-mask-back",
    };
    pid_t pid = start_filtered(SECCOMP_RET_KILL_PROCESS);
    for (unsigned i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
        struct kill_aim aim = {pid, points[i]};
        int status = ktest_reap(ktest_spawn(inject_and_die, &aim), 10000);
        KTEST_CHECK(WIFSIGNALED(status), "not killed at %s: 0x%x", points[i], status);
        for (int k = 0; k < 20; k++)
            ktest_nap();
        KTEST_CHECK(!ktest_ended(pid), "the process died with its injector at %s", points[i]);
    }
    return KTEST_PASS;
}

/* --- states ---------------------------------------------------------------------------------- */

static int polite(void *opaque)
{
    (void)opaque;
    atomic_store(&shared->ready, 1);
    wait_for_stop();
    return 0;
}

static char state_of(pid_t pid)
{
    char path[64], state = '?';
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    FILE *f = fopen(path, "re");
    if (f && fscanf(f, "%*d (%*[^)]) %c", &state) != 1)
        state = '?';
    if (f)
        fclose(f);
    return state;
}

static int stopped(const void *arg)
{
    (void)arg;
    struct error e = {0};
    pid_t pid = start(polite);
    kill(pid, SIGSTOP);
    KTEST_CHECK(KTEST_WAIT(state_of(pid) == 'T'), "it does not stop");
    for (int i = 0; i < 3; i++) {
        KTEST_CHECK(inject_once(pid, TIMEOUT_MS, &e) == 0, "%s", e.message);
        KTEST_CHECK(KTEST_WAIT(state_of(pid) == 'T'), "state %c", state_of(pid));
    }
    kill(pid, SIGCONT);
    return ends_well(pid);
}

/* The process is stopped and continued all the time. */
static int stopped_meanwhile(const void *arg)
{
    (void)arg;
    struct error e = {0};
    pid_t pid = start(polite);
    for (int i = 0; i < 60; i++) {
        kill(pid, i % 2 ? SIGCONT : SIGSTOP);
        KTEST_CHECK(inject_once(pid, TIMEOUT_MS, &e) == 0, "%s", e.message);
        kill(pid, i % 2 ? SIGSTOP : SIGCONT);
        KTEST_CHECK(inject_once(pid, TIMEOUT_MS, &e) == 0, "%s", e.message);
    }
    kill(pid, SIGCONT);
    return ends_well(pid);
}

static int tracer(void *opaque)
{
    if (ptrace(PTRACE_SEIZE, *(const pid_t *)opaque, 0, 0) != 0)
        return 1;
    atomic_store(&shared->value, 1);
    pause();
    return 0;
}

static int traced(const void *arg)
{
    (void)arg;
    struct error e = {0};
    pid_t pid = start(polite);
    pid_t by = ktest_spawn(tracer, &pid);
    char text[32];
    KTEST_CHECK(KTEST_WAIT(atomic_load(&shared->value)), "the tracer does not trace");
    uint64_t t0 = clock_monotonic_ns();
    int r = inject_once(pid, TIMEOUT_MS, &e);
    KTEST_CHECK(r < 0 && e.exit_code == VMSNAP_EXIT_TARGET, "r %d, exit code %d", r, e.exit_code);
    snprintf(text, sizeof(text), "process %d", (int)by);
    KTEST_CHECK(strstr(e.message, text), "does not name %d: %s", (int)by, e.message);
    KTEST_CHECK(clock_monotonic_ns() - t0 < 1000000000u, "took its time to say so");
    ktest_end(by);
    e = (struct error){0};
    KTEST_CHECK(inject_once(pid, TIMEOUT_MS, &e) == 0, "afterwards: %s", e.message);
    return ends_well(pid);
}

static int busy(void *opaque)
{
    (void)opaque;
    atomic_store(&shared->ready, 1);
    while (!atomic_load(&shared->stop))
        atomic_fetch_add(&shared->value, 1);
    return 0;
}

static int never_at_rest(const void *arg)
{
    (void)arg;
    struct error e = {0};
    pid_t pid = start(busy);
    uint64_t t0 = clock_monotonic_ns();
    int r = inject_once(pid, 300, &e);
    uint64_t ms = (clock_monotonic_ns() - t0) / 1000000;
    KTEST_CHECK(r == -ETIMEDOUT && e.exit_code == VMSNAP_EXIT_TIMEOUT, "r %d, exit code %d: %s", r,
                e.exit_code, e.message);
    KTEST_CHECK(ms >= 250 && ms < 3000, "%d ms", (int)ms);
    int before = atomic_load(&shared->value);
    KTEST_CHECK(KTEST_WAIT(atomic_load(&shared->value) != before), "it does not run any more");
    return ends_well(pid);
}

static void *busy_thread(void *opaque)
{
    (void)opaque;
    while (!atomic_load(&shared->stop))
        atomic_fetch_add(&shared->value, 1);
    return NULL;
}

static int busy_with_helper(void *opaque)
{
    (void)opaque;
    pthread_t thread[3];
    for (int i = 0; i < 3; i++)
        pthread_create(&thread[i], NULL, busy_thread, NULL);
    atomic_store(&shared->ready, 1);
    wait_for_stop();
    for (int i = 0; i < 3; i++)
        pthread_join(thread[i], NULL);
    return 0;
}

static int one_thread_at_rest(const void *arg)
{
    (void)arg;
    struct error e = {0};
    pid_t pid = start(busy_with_helper);
    for (int i = 0; i < 20; i++)
        KTEST_CHECK(inject_once(pid, TIMEOUT_MS, &e) == 0, "%s", e.message);
    return ends_well(pid);
}

static void *short_lived(void *opaque)
{
    (void)opaque;
    atomic_fetch_add(&shared->value, 1);
    poll(NULL, 0, 0);
    return NULL;
}

static int with_short_lived(void *opaque)
{
    (void)opaque;
    atomic_store(&shared->ready, 1);
    while (!atomic_load(&shared->stop)) {
        pthread_t thread[4];
        for (int i = 0; i < 4; i++) {
            if (pthread_create(&thread[i], NULL, short_lived, NULL) != 0)
                return 1;
        }
        for (int i = 0; i < 4; i++)
            pthread_join(thread[i], NULL);
    }
    return 0;
}

static int threads_come_and_go(const void *arg)
{
    (void)arg;
    struct error e = {0};
    pid_t pid = start(with_short_lived);
    for (int i = 0; i < 100; i++)
        KTEST_CHECK(inject_once(pid, TIMEOUT_MS, &e) == 0, "%s", e.message);
    int before = atomic_load(&shared->value);
    KTEST_CHECK(KTEST_WAIT(atomic_load(&shared->value) > before), "it does not run any more");
    return ends_well(pid);
}

/* --- stacks ---------------------------------------------------------------------------------- */

#define HEAP_BYTES (256ul << 10)

/* Blocks on an alternate signal stack of 8 KiB in the middle of memory that is something else. */
static void on_borrowed_stack(int signal)
{
    (void)signal;
    atomic_store(&shared->ready, 1);
    wait_for_stop();
}

static int with_borrowed_stack(void *opaque)
{
    (void)opaque;
    char *heap = malloc(HEAP_BYTES);
    char *stack = heap + HEAP_BYTES - (16 << 10);
    stack_t ss = {.ss_sp = stack, .ss_size = 16 << 10};
    struct sigaction sa = {.sa_handler = on_borrowed_stack, .sa_flags = SA_ONSTACK};
    memset(heap, 0x5a, HEAP_BYTES);
    if (sigaltstack(&ss, NULL) != 0 || sigaction(SIGUSR1, &sa, NULL) != 0)
        return 1;
    raise(SIGUSR1);
    for (char *p = heap; p < stack; p++) {
        if (*p != 0x5a)
            return 2;
    }
    free(heap);
    return 0;
}

static int borrowed_stack(const void *arg)
{
    (void)arg;
    struct error e = {0};
    pid_t pid = start(with_borrowed_stack);
    int r = inject_once(pid, 300, &e);
    KTEST_CHECK(r == -ETIMEDOUT && e.exit_code == VMSNAP_EXIT_TIMEOUT, "r %d: %s", r, e.message);
    return ends_well(pid);
}

static void *small_stack_thread(void *opaque)
{
    wait_for_stop();
    return opaque;
}

/* A thread whose stack has no room for the frame; the other threads are not at rest. */
static int with_small_stack(void *opaque)
{
    (void)opaque;
    pthread_t thread;
    pthread_attr_t attr;
    char *mem = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *stack = mem + 8 * PAGE;
    memset(mem, 0x5a, 8 * PAGE);
    mprotect(stack - PAGE, PAGE, PROT_NONE); /* the guard */
    pthread_attr_init(&attr);
    pthread_attr_setstack(&attr, stack, 8 * PAGE);
    if (pthread_create(&thread, &attr, small_stack_thread, NULL) != 0)
        return 1;
    busy(NULL);
    pthread_join(thread, NULL);
    for (char *p = mem; p < stack - PAGE; p++) {
        if (*p != 0x5a)
            return 2;
    }
    return 0;
}

/* With room or without, it must not write beyond the guard. */
static int small_stack(const void *arg)
{
    (void)arg;
    struct error e = {0};
    pid_t pid = start(with_small_stack);
    int r = inject_once(pid, 300, &e);
    KTEST_CHECK(r == 0 || e.exit_code == VMSNAP_EXIT_TIMEOUT, "%s", e.message);
    return ends_well(pid);
}

/* --- held by a userfaultfd ------------------------------------------------------------------- */

/* A thread's read() into memory that a userfaultfd holds, and perhaps another thread at rest. */
static void *reader(void *opaque)
{
    (void)opaque;
    int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    ssize_t n = read(fd, (void *)shared->address, 16);
    close(fd);
    atomic_store(&shared->value, n == 16 ? 1 : -1);
    return NULL;
}

static int make_held_memory(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    void *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fd < 0 || uffd_enable(fd, 0) != 0 ||
        uffd_register(fd, (uintptr_t)p, PAGE, UFFDIO_REGISTER_MODE_MISSING, NULL) != 0)
        return -1;
    shared->address = (uintptr_t)p;
    shared->fd = fd;
    return 0;
}

static int held_with_helper(void *opaque)
{
    (void)opaque;
    pthread_t thread;
    if (make_held_memory() != 0 || pthread_create(&thread, NULL, reader, NULL) != 0)
        return 1;
    struct pollfd p = {.fd = shared->fd, .events = POLLIN};
    poll(&p, 1, 5000);
    atomic_store(&shared->ready, 1);
    wait_for_stop();
    if (atomic_load(&shared->value) != 0)
        return 2;
    uffd_zeropage(shared->fd, shared->address, PAGE, true, NULL);
    pthread_join(thread, NULL);
    return atomic_load(&shared->value) == 1 ? 0 : 3;
}

static int held_thread(const void *arg)
{
    (void)arg;
    struct error e = {0};
    pid_t pid = start(held_with_helper);
    uint64_t t0 = clock_monotonic_ns();
    for (int i = 0; i < 5; i++)
        KTEST_CHECK(inject_once(pid, TIMEOUT_MS, &e) == 0, "%s", e.message);
    KTEST_CHECK(clock_monotonic_ns() - t0 < 2000000000u, "waited for the thread that is held");
    return ends_well(pid);
}

static int held_alone(void *opaque)
{
    (void)opaque;
    if (make_held_memory() != 0)
        return 1;
    atomic_store(&shared->ready, 1);
    reader(NULL);
    return atomic_load(&shared->value) == 1 ? 0 : 2;
}

/* The only thread is held: a clean refusal, and it goes on once its page is there. */
static int held_only(const void *arg)
{
    (void)arg;
    struct error e = {0};
    struct target t;
    pid_t pid = start(held_alone);
    KTEST_CHECK(target_open(&t, pid, &e) == 0, "%s", e.message);
    int fd = target_get_fd(&t, shared->fd);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    KTEST_CHECK(poll(&p, 1, 5000) == 1, "no fault");
    int r = inject_once(pid, 300, &e);
    KTEST_CHECK(r == -ETIMEDOUT && e.exit_code == VMSNAP_EXIT_TIMEOUT, "r %d: %s", r, e.message);
    KTEST_CHECK(uffd_zeropage(fd, shared->address, PAGE, true, NULL) == 0, "can't resolve");
    close(fd);
    target_close(&t);
    return ends_well(pid);
}

/* --- the calls ------------------------------------------------------------------------------- */

static int kept_fd(const void *arg)
{
    (void)arg;
    struct error e = {0};
    struct target t;
    int fd, keep = -1;
    pid_t pid = start(polite);
    KTEST_CHECK(target_open(&t, pid, &e) == 0, "%s", e.message);
    KTEST_CHECK(inject_userfaultfd(&t, &fd, &keep, TIMEOUT_MS, &e) == 0, "%s", e.message);
    KTEST_CHECK(keep >= 0 && uffd_enable(fd, 0) == 0, "no userfaultfd");
    close(fd);
    int again = target_get_fd(&t, keep);
    KTEST_CHECK(again >= 0, "the target did not keep it: %d", again);
    KTEST_CHECK(uffd_enable(again, 0) == -EINVAL, "not the same userfaultfd");
    close(again);
    KTEST_CHECK(inject_close_fd(&t, keep, TIMEOUT_MS, &e) == 0, "%s", e.message);
    KTEST_CHECK(target_get_fd(&t, keep) == -EBADF, "still there");
    KTEST_CHECK(inject_close_fd(&t, keep, TIMEOUT_MS, &e) == -EBADF, "closed twice");
    target_close(&t);
    return ends_well(pid);
}

#define ADVISED_BYTES (8ul << 20)

static int with_memory(void *opaque)
{
    (void)opaque;
    char *p = mmap(NULL, ADVISED_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(p, 1, ADVISED_BYTES);
    shared->address = (uintptr_t)p;
    return polite(NULL);
}

static int madvise_there(const void *arg)
{
    (void)arg;
    struct error e = {0};
    struct target t;
    pid_t pid = start(with_memory);
    KTEST_CHECK(target_open(&t, pid, &e) == 0, "%s", e.message);
    uint64_t before = ktest_status(pid, "VmRSS");
    int r =
        inject_madvise(&t, shared->address, ADVISED_BYTES, MADV_DONTNEED, 1 << 20, TIMEOUT_MS, &e);
    KTEST_CHECK(r == 0, "%s", e.message);
    uint64_t after = ktest_status(pid, "VmRSS");
    KTEST_CHECK(after + 7000 < before, "VmRSS %d KiB, was %d", (int)after, (int)before);
    r = inject_madvise(&t, shared->address + 1, PAGE, MADV_DONTNEED, 0, TIMEOUT_MS, &e);
    KTEST_CHECK(r == -EINVAL, "an address that is not aligned: %d", r);
    target_close(&t);
    return ends_well(pid);
}

static int gone(const void *arg)
{
    (void)arg;
    struct error e = {0};
    struct target t;
    pid_t pid = start(polite);
    KTEST_CHECK(target_open(&t, pid, &e) == 0, "%s", e.message);
    ktest_end(pid);
    int fd, r = inject_userfaultfd(&t, &fd, NULL, TIMEOUT_MS, &e);
    KTEST_CHECK(r == -ESRCH && e.exit_code == VMSNAP_EXIT_TARGET, "r %d: %s", r, e.message);
    target_close(&t);
    r = target_open(&t, pid, &e);
    KTEST_CHECK(r == -ESRCH && e.exit_code == VMSNAP_EXIT_TARGET, "r %d: %s", r, e.message);
    return KTEST_PASS;
}

/* Killed between two injected calls, while its thread is ours. */
static int dies_meanwhile(const void *arg)
{
    (void)arg;
    struct error e = {0};
    struct target t;
    struct injector *inj;
    int64_t result = 0;
    pid_t pid = start(polite);
    KTEST_CHECK(target_open(&t, pid, &e) == 0, "%s", e.message);
    KTEST_CHECK(inject_begin(&inj, &t, TIMEOUT_MS, &e) == 0, "%s", e.message);
    KTEST_CHECK(inject_syscall(inj, &result, SYS_getpid, 0, 0, 0, 0, 0, 0) == 0 && result == pid,
                "getpid() gave %d", (int)result);
    kill(pid, SIGKILL);
    int r = inject_syscall(inj, &result, SYS_getpid, 0, 0, 0, 0, 0, 0);
    KTEST_CHECK(r == -ESRCH, "r %d", r);
    r = inject_end(inj, &e);
    KTEST_CHECK(r < 0, "ended as if nothing had been");
    int status = ktest_reap(pid, 5000);
    KTEST_CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status 0x%x", status);
    target_close(&t);
    return KTEST_PASS;
}

int main(int argc, char **argv)
{
    static const uint32_t kill_process = SECCOMP_RET_KILL_PROCESS;
    static const uint32_t kill_thread = SECCOMP_RET_KILL_THREAD;
    static const uint32_t trap = SECCOMP_RET_TRAP;
    const struct ktest_case cases[] = {
        {"unprivileged", unprivileged, NULL},
        {"unprivileged, no device", unprivileged_without_device, NULL},
        {"seccomp: errno", seccomp_errno, NULL},
        {"seccomp: kill process", seccomp_kill, &kill_process},
        {"seccomp: kill thread", seccomp_kill, &kill_thread},
        {"seccomp: trap", seccomp_kill, &trap},
        {"seccomp: kill process, injector killed", seccomp_kill_killed, NULL},
        {"stopped", stopped, NULL},
        {"stopped and continued meanwhile", stopped_meanwhile, NULL},
        {"traced by another", traced, NULL},
        {"never at rest", never_at_rest, NULL},
        {"one thread at rest, three busy", one_thread_at_rest, NULL},
        {"threads come and go", threads_come_and_go, NULL},
        {"on a borrowed stack", borrowed_stack, NULL},
        {"on a small stack", small_stack, NULL},
        {"a thread held by a userfaultfd", held_thread, NULL},
        {"the only thread held by a userfaultfd", held_only, NULL},
        {"a descriptor kept", kept_fd, NULL},
        {"madvise", madvise_there, NULL},
        {"gone before", gone, NULL},
        {"dies meanwhile", dies_meanwhile, NULL},
    };
    shared = ktest_shared(sizeof(*shared));
    return ktest_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
