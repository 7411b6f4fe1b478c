/* Injection into processes without privileges, and under seccomp filters. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/kernel.h"
#include "ktest.h"
#include "target_kit.h"

#define TIMEOUT_MS 5000

static int as_nobody(void *opaque)
{
    (void)opaque;
    if (setgid(65534) != 0 || setuid(65534) != 0)
        return 1;
    /* What vmsnap must get round: this process may not do it by itself. */
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    atomic_store(&kit_shared->value, fd < 0 ? errno : 0);
    if (fd >= 0)
        close(fd);
    int before = dup(0);
    close(before);
    atomic_store(&kit_shared->ready, 1);
    kit_wait_for_stop();
    int after = dup(0);
    return after == before ? 0 : 2; /* nothing was left open */
}

static int unprivileged(const void *arg)
{
    (void)arg;
    struct error e = {0};
    KTEST_SKIP_IF(!kernel_probe()->dev_userfaultfd, "no /dev/userfaultfd");
    pid_t pid = kit_start(as_nobody, NULL);
    if (atomic_load(&kit_shared->value) != EPERM)
        printf("    vm.unprivileged_userfaultfd is on: the process may do it itself\n");
    for (int i = 0; i < 3; i++)
        KTEST_CHECK(kit_inject(pid, TIMEOUT_MS, &e) == 0, "%s", e.message);
    return kit_ends_well(pid);
}

static int unprivileged_without_device(const void *arg)
{
    (void)arg;
#ifndef VMSNAP_TEST_HOOKS
    KTEST_SKIP_IF(true, "built without test hooks");
#endif
    struct error e = {0};
    pid_t pid = kit_start(as_nobody, NULL);
    KTEST_SKIP_IF(atomic_load(&kit_shared->value) != EPERM, "the process may do it itself");
    setenv("VMSNAP_MASK_FEATURES", "dev-userfaultfd", 1);
    int r = kit_inject(pid, TIMEOUT_MS, &e);
    unsetenv("VMSNAP_MASK_FEATURES");
    KTEST_CHECK(r < 0 && e.exit_code == VMSNAP_EXIT_KERNEL, "r = %d, exit code %d: %s", r,
                e.exit_code, e.message);
    return kit_ends_well(pid);
}

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
    atomic_store(&kit_shared->ready, 1);
    kit_wait_for_stop();
    /* The filter is back. */
    long fd = syscall(SYS_userfaultfd, O_CLOEXEC);
    return fd < 0 && errno == ENODEV ? 0 : 2;
}

static pid_t start_filtered(uint32_t action)
{
    return kit_start(under_filter, &action);
}

static int seccomp_errno(const void *arg)
{
    (void)arg;
    struct error e = {0};
    pid_t pid = start_filtered(SECCOMP_RET_ERRNO | ENODEV);
    for (int i = 0; i < 3; i++)
        KTEST_CHECK(kit_inject(pid, TIMEOUT_MS, &e) == 0, "%s", e.message);
    return kit_ends_well(pid);
}

/* With `arg` the action: the process must die of its own call afterwards, and not of ours. */
static int seccomp_kill(const void *arg)
{
    struct error e = {0};
    pid_t pid = start_filtered(*(const uint32_t *)arg);
    for (int i = 0; i < 3; i++)
        KTEST_CHECK(kit_inject(pid, TIMEOUT_MS, &e) == 0, "%s", e.message);
    KTEST_CHECK(!ktest_ended(pid), "the filter killed it for our call");
    atomic_store(&kit_shared->stop, 1);
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
    return kit_inject(aim->pid, TIMEOUT_MS, &e) ? 1 : 2;
}

/* The injector dies at a step: the target goes on. */
static int die_at(pid_t pid, const char *point)
{
    struct kill_aim aim = {pid, point};
    int status = ktest_reap(ktest_spawn(inject_and_die, &aim), 10000);
    KTEST_CHECK(WIFSIGNALED(status), "not killed at %s: 0x%x", point, status);
    for (int k = 0; k < 20; k++)
        ktest_nap();
    KTEST_CHECK(!ktest_ended(pid), "the process died with its injector at %s", point);
    return KTEST_PASS;
}

/* A filter that gets to see our call, as its suspender is dead, fails it: no more. */
static int seccomp_errno_killed(const void *arg)
{
    (void)arg;
#ifndef VMSNAP_TEST_HOOKS
    KTEST_SKIP_IF(true, "built without test hooks");
#endif
    pid_t pid = start_filtered(SECCOMP_RET_ERRNO | ENODEV);
    for (int i = 0; i < 5; i++) {
        if (die_at(pid, "inject-in-syscall") != KTEST_PASS)
            return KTEST_FAIL;
    }
    return kit_ends_well(pid);
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
        if (die_at(pid, points[i]) != KTEST_PASS)
            return KTEST_FAIL;
    }
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
        {"seccomp: errno, injector killed", seccomp_errno_killed, NULL},
        {"seccomp: kill process", seccomp_kill, &kill_process},
        {"seccomp: kill thread", seccomp_kill, &kill_thread},
        {"seccomp: trap", seccomp_kill, &trap},
        {"seccomp: kill process, injector killed", seccomp_kill_killed, NULL},
    };
    kit_init();
    return ktest_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
