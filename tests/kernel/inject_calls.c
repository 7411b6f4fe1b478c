/*
 * Injection into a process that is blocked in each kind of system call: the call goes on with the
 * right result, every register, the signal mask and the alternate stack are as they were, and
 * nothing is left in the process.
 */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "blocking.h"
#include "common/inject.h"
#include "common/uffd.h"
#include "ktest.h"

#define ROUNDS 4
#define TIMEOUT_MS 5000

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

/* What "every register" is on this CPU. */
static int say_registers(const void *arg)
{
    (void)arg;
    struct blocked *b = blocked_start(&blocking_kinds[0]);
    KTEST_CHECK(b, "can't start");
    printf("    checked over every call: general registers, red zone, %s\n", b->components);
    return KTEST_PASS;
}

static int run_kind(const void *arg)
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

int main(int argc, char **argv)
{
    struct ktest_case *cases = calloc(n_blocking_kinds + 1, sizeof(*cases));
    if (!cases)
        return KTEST_FAIL;
    for (unsigned i = 0; i < n_blocking_kinds; i++)
        cases[i] = (struct ktest_case){blocking_kinds[i].name, run_kind, &blocking_kinds[i]};
    cases[n_blocking_kinds] = (struct ktest_case){"registers", say_registers, NULL};
    int result = ktest_main(argc, argv, cases, n_blocking_kinds + 1);
    free(cases);
    return result;
}
