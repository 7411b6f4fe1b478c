/*
 * Injection into processes of every temper: stopped, traced by another, never at rest, on a
 * borrowed stack, held by a userfaultfd, with threads that come and go.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/target/target.h"
#include "common/uffd.h"
#include "ktest.h"
#include "target_kit.h"

#define TIMEOUT_MS 5000
#define PAGE 4096ul

static int stopped(const void *arg)
{
    (void)arg;
    struct error e = {0};
    pid_t pid = kit_start(kit_polite, NULL);
    kill(pid, SIGSTOP);
    KTEST_CHECK(KTEST_WAIT(kit_state(pid) == 'T'), "it does not stop");
    for (int i = 0; i < 3; i++) {
        KTEST_CHECK(kit_inject(pid, TIMEOUT_MS, &e) == 0, "%s", e.message);
        KTEST_CHECK(KTEST_WAIT(kit_state(pid) == 'T'), "state %c", kit_state(pid));
    }
    kill(pid, SIGCONT);
    return kit_ends_well(pid);
}

/* Stopped in its own code, not in a system call, it can't be attached to: that is said. */
static int inject_or_stopped(pid_t pid, unsigned *refused)
{
    struct error e = {0};
    int r = kit_inject(pid, 500, &e);
    if (r == -ETIMEDOUT && kit_state(pid) == 'T') {
        KTEST_CHECK(strstr(e.hint, "stopped"), "no hint: %s", e.message);
        ++*refused;
        return KTEST_PASS;
    }
    KTEST_CHECK(r == 0, "%s", e.message);
    return KTEST_PASS;
}

/* The process is stopped and continued all the time. */
static int stopped_meanwhile(const void *arg)
{
    (void)arg;
    unsigned refused = 0;
    pid_t pid = kit_start(kit_polite, NULL);
    for (int i = 0; i < 60; i++) {
        kill(pid, i % 2 ? SIGCONT : SIGSTOP);
        if (inject_or_stopped(pid, &refused) != KTEST_PASS)
            return KTEST_FAIL;
        kill(pid, i % 2 ? SIGSTOP : SIGCONT);
        if (inject_or_stopped(pid, &refused) != KTEST_PASS)
            return KTEST_FAIL;
    }
    KTEST_CHECK(refused < 30, "%u of 120 refused", refused);
    kill(pid, SIGCONT);
    return kit_ends_well(pid);
}

static int tracer(void *opaque)
{
    if (ptrace(PTRACE_SEIZE, *(const pid_t *)opaque, 0, 0) != 0)
        return 1;
    atomic_store(&kit_shared->value, 1);
    pause();
    return 0;
}

static int traced(const void *arg)
{
    (void)arg;
    struct error e = {0};
    pid_t pid = kit_start(kit_polite, NULL);
    pid_t by = ktest_spawn(tracer, &pid);
    char text[32];
    KTEST_CHECK(KTEST_WAIT(atomic_load(&kit_shared->value)), "the tracer does not trace");
    uint64_t t0 = clock_monotonic_ns();
    int r = kit_inject(pid, TIMEOUT_MS, &e);
    KTEST_CHECK(r < 0 && e.exit_code == VMSNAP_EXIT_TARGET, "r %d, exit code %d", r, e.exit_code);
    snprintf(text, sizeof(text), "process %d", (int)by);
    KTEST_CHECK(strstr(e.message, text), "does not name %d: %s", (int)by, e.message);
    KTEST_CHECK(clock_monotonic_ns() - t0 < 1000000000u, "took its time to say so");
    ktest_end(by);
    e = (struct error){0};
    KTEST_CHECK(kit_inject(pid, TIMEOUT_MS, &e) == 0, "afterwards: %s", e.message);
    return kit_ends_well(pid);
}

static int busy(void *opaque)
{
    (void)opaque;
    atomic_store(&kit_shared->ready, 1);
    while (!atomic_load(&kit_shared->stop))
        atomic_fetch_add(&kit_shared->value, 1);
    return 0;
}

static int never_at_rest(const void *arg)
{
    (void)arg;
    struct error e = {0};
    pid_t pid = kit_start(busy, NULL);
    uint64_t t0 = clock_monotonic_ns();
    int r = kit_inject(pid, 300, &e);
    uint64_t ms = (clock_monotonic_ns() - t0) / 1000000;
    KTEST_CHECK(r == -ETIMEDOUT && e.exit_code == VMSNAP_EXIT_TIMEOUT, "r %d, exit code %d: %s", r,
                e.exit_code, e.message);
    KTEST_CHECK(ms >= 250 && ms < 3000, "%d ms", (int)ms);
    int before = atomic_load(&kit_shared->value);
    KTEST_CHECK(KTEST_WAIT(atomic_load(&kit_shared->value) != before), "it does not run any more");
    return kit_ends_well(pid);
}

static void *busy_thread(void *opaque)
{
    (void)opaque;
    while (!atomic_load(&kit_shared->stop))
        atomic_fetch_add(&kit_shared->value, 1);
    return NULL;
}

static int busy_with_helper(void *opaque)
{
    (void)opaque;
    pthread_t thread[3];
    for (int i = 0; i < 3; i++)
        pthread_create(&thread[i], NULL, busy_thread, NULL);
    atomic_store(&kit_shared->ready, 1);
    kit_wait_for_stop();
    for (int i = 0; i < 3; i++)
        pthread_join(thread[i], NULL);
    return 0;
}

static int one_thread_at_rest(const void *arg)
{
    (void)arg;
    struct error e = {0};
    pid_t pid = kit_start(busy_with_helper, NULL);
    for (int i = 0; i < 20; i++)
        KTEST_CHECK(kit_inject(pid, TIMEOUT_MS, &e) == 0, "%s", e.message);
    return kit_ends_well(pid);
}

static void *short_lived(void *opaque)
{
    (void)opaque;
    atomic_fetch_add(&kit_shared->value, 1);
    poll(NULL, 0, 0);
    return NULL;
}

static int with_short_lived(void *opaque)
{
    (void)opaque;
    atomic_store(&kit_shared->ready, 1);
    while (!atomic_load(&kit_shared->stop)) {
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
    pid_t pid = kit_start(with_short_lived, NULL);
    for (int i = 0; i < 100; i++)
        KTEST_CHECK(kit_inject(pid, TIMEOUT_MS, &e) == 0, "%s", e.message);
    int before = atomic_load(&kit_shared->value);
    KTEST_CHECK(KTEST_WAIT(atomic_load(&kit_shared->value) > before), "it does not run any more");
    return kit_ends_well(pid);
}

#define HEAP_BYTES (256ul << 10)

/* Blocks on an alternate signal stack of 8 KiB in the middle of memory that is something else. */
static void on_borrowed_stack(int signal)
{
    (void)signal;
    atomic_store(&kit_shared->ready, 1);
    kit_wait_for_stop();
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
    pid_t pid = kit_start(with_borrowed_stack, NULL);
    int r = kit_inject(pid, 300, &e);
    KTEST_CHECK(r == -ETIMEDOUT && e.exit_code == VMSNAP_EXIT_TIMEOUT, "r %d: %s", r, e.message);
    return kit_ends_well(pid);
}

static void *small_stack_thread(void *opaque)
{
    kit_wait_for_stop();
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
    pid_t pid = kit_start(with_small_stack, NULL);
    int r = kit_inject(pid, 300, &e);
    KTEST_CHECK(r == 0 || e.exit_code == VMSNAP_EXIT_TIMEOUT, "%s", e.message);
    return kit_ends_well(pid);
}

/* A thread's read() into memory that a userfaultfd holds, and perhaps another thread at rest. */
static void *reader(void *opaque)
{
    (void)opaque;
    int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    ssize_t n = read(fd, (void *)kit_shared->address, 16);
    close(fd);
    atomic_store(&kit_shared->value, n == 16 ? 1 : -1);
    return NULL;
}

static int make_held_memory(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    void *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fd < 0 || uffd_enable(fd, 0) != 0 ||
        uffd_register(fd, (uintptr_t)p, PAGE, UFFDIO_REGISTER_MODE_MISSING, NULL) != 0)
        return -1;
    kit_shared->address = (uintptr_t)p;
    kit_shared->fd = fd;
    return 0;
}

static int held_with_helper(void *opaque)
{
    (void)opaque;
    pthread_t thread;
    if (make_held_memory() != 0 || pthread_create(&thread, NULL, reader, NULL) != 0)
        return 1;
    struct pollfd p = {.fd = kit_shared->fd, .events = POLLIN};
    poll(&p, 1, 5000);
    atomic_store(&kit_shared->ready, 1);
    kit_wait_for_stop();
    if (atomic_load(&kit_shared->value) != 0)
        return 2;
    uffd_zeropage(kit_shared->fd, kit_shared->address, PAGE, true, NULL);
    pthread_join(thread, NULL);
    return atomic_load(&kit_shared->value) == 1 ? 0 : 3;
}

static int held_thread(const void *arg)
{
    (void)arg;
    struct error e = {0};
    pid_t pid = kit_start(held_with_helper, NULL);
    uint64_t t0 = clock_monotonic_ns();
    for (int i = 0; i < 5; i++)
        KTEST_CHECK(kit_inject(pid, TIMEOUT_MS, &e) == 0, "%s", e.message);
    KTEST_CHECK(clock_monotonic_ns() - t0 < 2000000000u, "waited for the thread that is held");
    return kit_ends_well(pid);
}

static int held_alone(void *opaque)
{
    (void)opaque;
    if (make_held_memory() != 0)
        return 1;
    atomic_store(&kit_shared->ready, 1);
    reader(NULL);
    return atomic_load(&kit_shared->value) == 1 ? 0 : 2;
}

/* The only thread is held: a clean refusal, and it goes on once its page is there. */
static int held_only(const void *arg)
{
    (void)arg;
    struct error e = {0};
    struct target t;
    pid_t pid = kit_start(held_alone, NULL);
    KTEST_CHECK(target_open(&t, pid, &e) == 0, "%s", e.message);
    int fd = target_get_fd(&t, kit_shared->fd);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    KTEST_CHECK(poll(&p, 1, 5000) == 1, "no fault");
    int r = kit_inject(pid, 300, &e);
    KTEST_CHECK(r == -ETIMEDOUT && e.exit_code == VMSNAP_EXIT_TIMEOUT, "r %d: %s", r, e.message);
    KTEST_CHECK(uffd_zeropage(fd, kit_shared->address, PAGE, true, NULL) == 0, "can't resolve");
    close(fd);
    target_close(&t);
    return kit_ends_well(pid);
}

int main(int argc, char **argv)
{
    const struct ktest_case cases[] = {
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
    };
    kit_init();
    return ktest_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
