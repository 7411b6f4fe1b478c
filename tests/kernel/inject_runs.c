#include "inject_runs.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/inject/inject.h"
#include "common/uffd.h"
#include "ktest.h"

#define TIMEOUT_MS 5000
#define ROUNDS 4

static int count_fds(pid_t pid)
{
    char path[64];
    int n = 0;
    snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
    DIR *dir = opendir(path);
    while (dir && readdir(dir))
        n++;
    if (dir)
        closedir(dir);
    return n;
}

/* Three times while the process stays blocked: the second and third find it in a restarted call. */
static int inject_thrice(const struct target *t)
{
    for (int i = 0; i < 3; i++) {
        struct error e = {0};
        int fd = -1;
        int r = inject_userfaultfd(t, &fd, NULL, TIMEOUT_MS, &e);
        KTEST_CHECK(r == 0, "%s", e.message);
        KTEST_CHECK(uffd_enable(fd, 0) == 0, "no userfaultfd");
        close(fd);
    }
    return KTEST_PASS;
}

int inject_run_calls(const void *arg)
{
    const struct blocking_kind *kind = arg;
    struct error e = {0};
    struct target t;
    struct blocked *b = blocked_start(kind);
    KTEST_SKIP_IF(!b, "no %s here", kind->name);
    KTEST_CHECK(target_open(&t, b->pid, &e) == 0, "%s", e.message);
    int fds = count_fds(b->pid);
    for (int i = 0; i < ROUNDS; i++) {
        KTEST_CHECK(blocked_wait(b), "%s", b->message);
        int round = atomic_load(&b->rounds);
        if (inject_thrice(&t) != KTEST_PASS)
            return KTEST_FAIL;
        const char *wrong = blocked_finish_round(b, round);
        KTEST_CHECK(!wrong, "%s", wrong);
    }
    KTEST_CHECK(blocked_wait(b), "%s", b->message);
    KTEST_CHECK(count_fds(b->pid) == fds, "descriptors are left in the process");
    target_close(&t);
    return KTEST_PASS;
}

#define RANDOM_KILLS 10

static const char *const points[] = {
    "inject-seized",        "inject-stopped",    "inject-frame-written",  "inject-parked",
    "inject-masked",        "inject-in-syscall", "inject-after-syscall",  "inject-fd-made",
    "inject-before-detach", "inject-mask-back",  "inject-registers-back",
};
#define N_POINTS (sizeof(points) / sizeof(points[0]))

unsigned inject_n_killed, inject_n_eintr;

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
    inject_n_killed++;
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
    inject_n_eintr += (unsigned)atomic_load(&b->eintrs);
    return KTEST_PASS;
}

int inject_run_killed(const void *arg)
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
