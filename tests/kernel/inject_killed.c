/*
 * The injecting process is killed at every step of inject_tracer.c, and at random moments, while
 * the target is blocked in each kind of system call: the target lives, its call has the right
 * result, and every register, the signal mask and the alternate stack are as they were.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "blocking.h"
#include "common/inject.h"
#include "ktest.h"

#define TIMEOUT_MS 5000
#define RANDOM_KILLS 10

static const char *const points[] = {
    "inject-seized",        "inject-stopped",    "inject-frame-written",  "inject-parked",
    "inject-masked",        "inject-in-syscall", "inject-after-syscall",  "inject-fd-made",
    "inject-before-detach", "inject-mask-back",  "inject-registers-back",
};
#define N_POINTS (sizeof(points) / sizeof(points[0]))

static unsigned n_killed, n_eintr;

/* What an injecting process does. */
struct aim {
    pid_t pid;
    const char *point; /* NULL: no aim, killed from outside */
    int *ready;
};

static int injector(void *opaque)
{
    const struct aim *aim = opaque;
    struct error e = {0};
    struct target t;
    int fd;
    if (aim->point)
        setenv("VMSNAP_KILL_AT", aim->point, 1);
    if (target_open(&t, aim->pid, &e) != 0)
        return 1;
    __atomic_store_n(aim->ready, 1, __ATOMIC_RELEASE);
    do {
        if (inject_userfaultfd(&t, &fd, NULL, TIMEOUT_MS, &e) != 0)
            return 2;
        close(fd);
    } while (!aim->point);
    return 0;
}

static void nap_us(long us)
{
    struct timespec t = {.tv_nsec = us * 1000};
    nanosleep(&t, NULL);
}

/* One injector that dies; the status of its end. */
static int run_injector(const struct blocked *b, const char *point)
{
    static int *ready;
    if (!ready)
        ready = ktest_shared(sizeof(*ready));
    struct aim aim = {.pid = b->pid, .point = point, .ready = ready};
    __atomic_store_n(ready, 0, __ATOMIC_RELEASE);
    pid_t pid = ktest_spawn(injector, &aim);
    if (!point) {
        while (!__atomic_load_n(ready, __ATOMIC_ACQUIRE) && !ktest_ended(pid))
            nap_us(50);
        nap_us(random() % 1500);
        kill(pid, SIGKILL);
    }
    return ktest_reap(pid, 20000);
}

static int kill_once(struct blocked *b, const char *point)
{
    KTEST_CHECK(blocked_wait(b), "%s", b->message);
    int round = atomic_load(&b->rounds);
    atomic_store(&b->may_eintr, point ? 0 : 1);
    int status = run_injector(b, point);
    KTEST_CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
                "the injector was not killed at %s (status 0x%x)", point ? point : "random",
                status);
    n_killed++;
    const char *wrong = blocked_finish_round(b, round);
    KTEST_CHECK(!wrong, "killed at %s: %s", point ? point : "a random moment", wrong);
    return KTEST_PASS;
}

/* Once more, without a kill: what the dead one left does not hinder it. */
static int inject_after(struct blocked *b)
{
    struct error e = {0};
    struct target t;
    int fd;
    KTEST_CHECK(blocked_wait(b), "%s", b->message);
    KTEST_CHECK(target_open(&t, b->pid, &e) == 0, "%s", e.message);
    KTEST_CHECK(inject_userfaultfd(&t, &fd, NULL, TIMEOUT_MS, &e) == 0, "%s", e.message);
    close(fd);
    target_close(&t);
    n_eintr += (unsigned)atomic_load(&b->eintrs);
    return KTEST_PASS;
}

static int run_kind(const void *arg)
{
    const struct blocking_kind *kind = arg;
    struct blocked *b = blocked_start(kind);
    KTEST_SKIP_IF(!b, "no %s here", kind->name);
    for (unsigned i = 0; i < N_POINTS + RANDOM_KILLS; i++) {
        if (kill_once(b, i < N_POINTS ? points[i] : NULL) != KTEST_PASS)
            return KTEST_FAIL;
    }
    return inject_after(b);
}

static int report(const void *arg)
{
    (void)arg;
    printf(
        "    %u injectors killed; %u times in the moment in which a stop ends a call with EINTR\n",
        n_killed, n_eintr);
    return KTEST_PASS;
}

int main(int argc, char **argv)
{
#ifndef VMSNAP_TEST_HOOKS
    printf("    skip: built without test hooks\n");
    return KTEST_SKIP;
#endif
    struct ktest_case *cases = calloc(n_blocking_kinds + 1, sizeof(*cases));
    if (!cases)
        return KTEST_FAIL;
    srandom((unsigned)time(NULL));
    for (unsigned i = 0; i < n_blocking_kinds; i++)
        cases[i] = (struct ktest_case){blocking_kinds[i].name, run_kind, &blocking_kinds[i]};
    cases[n_blocking_kinds] = (struct ktest_case){"killed in all", report, NULL};
    int result = ktest_main(argc, argv, cases, n_blocking_kinds + 1);
    free(cases);
    return result;
}
