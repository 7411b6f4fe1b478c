/*
 * Injection into a process that gets signals all the time: none is lost or out of order, handlers
 * run, calls that they should interrupt are interrupted and the others restarted, the mask stays.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/inject/inject.h"
#include "ktest.h"

#define TIMEOUT_MS 10000
#define STORM_US 100 /* 10 kHz */
#define INJECTIONS 150
#define ENOUGH_NS 8000000000ull /* so long, on a slow machine, and fewer of them */
#define KILLS 60

struct shared {
    atomic_int ready, stop, alarms, queued, wrong, bytes, eintrs, restarts;
    int pipe[2];
};

static struct shared *shared;
static int to_send;

static void on_alarm(int signal)
{
    (void)signal;
    atomic_fetch_add(&shared->alarms, 1);
}

/* Values are sent in order: a lost or repeated one shows. */
static void on_queued(int signal, siginfo_t *si, void *context)
{
    (void)signal;
    (void)context;
    if (si->si_value.sival_int != atomic_load(&shared->queued))
        atomic_store(&shared->wrong, 1);
    atomic_fetch_add(&shared->queued, 1);
}

static void set_handlers(void)
{
    struct sigaction sa = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &sa, NULL);
    sa.sa_sigaction = on_queued;
    sa.sa_flags = SA_RESTART | SA_SIGINFO;
    sigaction(SIGRTMIN + 1, &sa, NULL);
}

static bool mask_is(const sigset_t *wanted)
{
    sigset_t now;
    sigprocmask(SIG_SETMASK, NULL, &now);
    return memcmp(&now, wanted, 8) == 0;
}

/* Reads bytes from a pipe; every read is interrupted many times and restarted. */
static int in_storm(void *opaque)
{
    (void)opaque;
    sigset_t mask;
    char byte;
    struct itimerval storm = {.it_interval.tv_usec = STORM_US, .it_value.tv_usec = STORM_US};
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    sigprocmask(SIG_SETMASK, &mask, NULL);
    set_handlers();
    setitimer(ITIMER_REAL, &storm, NULL);
    atomic_store(&shared->ready, 1);
    for (;;) {
        ssize_t n = read(shared->pipe[0], &byte, 1);
        if (n != 1)
            return 1;
        if (!mask_is(&mask))
            return 2;
        if (byte == 'q')
            return 0;
        atomic_fetch_add(&shared->bytes, 1);
    }
}

static pid_t start(int (*fn)(void *))
{
    memset(shared, 0, sizeof(*shared));
    to_send = 0;
    if (pipe(shared->pipe) != 0)
        abort();
    pid_t pid = ktest_spawn(fn, NULL);
    return KTEST_WAIT(atomic_load(&shared->ready)) ? pid : -1;
}

/* A byte and three queued signals. */
static void poke(pid_t pid)
{
    for (int i = 0; i < 3; i++) {
        union sigval value = {.sival_int = to_send};
        if (sigqueue(pid, SIGRTMIN + 1, value) == 0)
            to_send++;
    }
    if (write(shared->pipe[1], "x", 1) != 1)
        abort();
}

static int inject_once(pid_t pid, struct error *e)
{
    struct target t;
    int fd;
    int r = target_open(&t, pid, e);
    if (r == 0)
        r = inject_userfaultfd(&t, &fd, NULL, TIMEOUT_MS, e);
    if (r == 0)
        close(fd);
    target_close(&t);
    return r;
}

static int all_arrived(pid_t pid, int pokes)
{
    KTEST_CHECK(KTEST_WAIT(atomic_load(&shared->bytes) == pokes), "%d of %d bytes",
                atomic_load(&shared->bytes), pokes);
    KTEST_CHECK(KTEST_WAIT(atomic_load(&shared->queued) == to_send), "%d of %d queued signals",
                atomic_load(&shared->queued), to_send);
    KTEST_CHECK(!atomic_load(&shared->wrong), "queued signals out of order");
    int before = atomic_load(&shared->alarms);
    KTEST_CHECK(KTEST_WAIT(atomic_load(&shared->alarms) > before + 10), "the storm has ended");
    if (write(shared->pipe[1], "q", 1) != 1)
        abort();
    int status = ktest_reap(pid, 10000);
    KTEST_CHECK(status == 0, "status 0x%x", status);
    return KTEST_PASS;
}

static int storm(const void *arg)
{
    (void)arg;
    struct error e = {0};
    pid_t pid = start(in_storm);
    uint64_t end_ns = clock_monotonic_ns() + ENOUGH_NS;
    int n = 0;
    while (n < INJECTIONS && clock_monotonic_ns() < end_ns) {
        poke(pid);
        KTEST_CHECK(inject_once(pid, &e) == 0, "injection %d: %s", n, e.message);
        n++;
    }
    return all_arrived(pid, n);
}

static int inject_forever(void *opaque)
{
    struct error e = {0};
    while (inject_once(*(const pid_t *)opaque, &e) == 0)
        ;
    printf("    %s\n", e.message);
    return 1;
}

static int storm_killed(const void *arg)
{
    (void)arg;
    pid_t pid = start(in_storm);
    srandom((unsigned)time(NULL));
    for (int i = 0; i < KILLS; i++) {
        struct timespec nap = {.tv_nsec = 2000000 + random() % 3000000};
        pid_t injector = ktest_spawn(inject_forever, &pid);
        poke(pid);
        nanosleep(&nap, NULL);
        kill(injector, SIGKILL);
        int status = ktest_reap(injector, 10000);
        KTEST_CHECK(WIFSIGNALED(status), "kill %d: the injector ended with 0x%x", i, status);
        KTEST_CHECK(!ktest_ended(pid), "kill %d: the process died", i);
    }
    return all_arrived(pid, KILLS);
}

/* Looks where it interrupts: at a `syscall` that is about to be made again? */
static void on_alarm_look(int signal, siginfo_t *si, void *context)
{
    const ucontext_t *uc = context;
    const uint8_t *code = (const uint8_t *)uc->uc_mcontext.gregs[REG_RIP];
    (void)signal;
    (void)si;
    if (uc->uc_mcontext.gregs[REG_RAX] == SYS_read && code[0] == 0x0f && code[1] == 0x05)
        atomic_fetch_add(&shared->restarts, 1);
    atomic_fetch_add(&shared->alarms, 1);
}

/* A handler without SA_RESTART must end the call with EINTR; nothing ever writes. */
static int wants_eintr(void *opaque)
{
    (void)opaque;
    char byte;
    struct sigaction sa = {.sa_sigaction = on_alarm_look, .sa_flags = SA_SIGINFO};
    struct itimerval often = {.it_interval.tv_usec = 1000, .it_value.tv_usec = 1000};
    sigaction(SIGALRM, &sa, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    atomic_store(&shared->ready, 1);
    while (!atomic_load(&shared->stop)) {
        if (read(shared->pipe[0], &byte, 1) >= 0 || errno != EINTR)
            return 1;
        atomic_fetch_add(&shared->eintrs, 1);
    }
    return 0;
}

static int handler_interrupts(const void *arg)
{
    (void)arg;
    struct error e = {0};
    pid_t pid = start(wants_eintr);
    uint64_t end_ns = clock_monotonic_ns() + ENOUGH_NS;
    for (int i = 0; i < INJECTIONS && clock_monotonic_ns() < end_ns; i++)
        KTEST_CHECK(inject_once(pid, &e) == 0, "injection %d: %s", i, e.message);
    int before = atomic_load(&shared->eintrs);
    KTEST_CHECK(KTEST_WAIT(atomic_load(&shared->eintrs) > before + 5), "it hangs in read()");
    /* A signal may come just before a call is made: rarely. */
    KTEST_CHECK(atomic_load(&shared->restarts) < 3, "%d of %d calls were restarted",
                atomic_load(&shared->restarts), atomic_load(&shared->alarms));
    atomic_store(&shared->stop, 1);
    int status = ktest_reap(pid, 10000);
    KTEST_CHECK(status == 0, "status 0x%x: read() did not end with EINTR", status);
    return KTEST_PASS;
}

int main(int argc, char **argv)
{
    const struct ktest_case cases[] = {
        {"a signal storm", storm, NULL},
        {"a signal storm, injectors killed", storm_killed, NULL},
        {"a handler interrupts", handler_interrupts, NULL},
    };
    shared = ktest_shared(sizeof(*shared));
    return ktest_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
