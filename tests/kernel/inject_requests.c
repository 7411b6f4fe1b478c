/* What is asked of injection beside a userfaultfd, and targets that are gone. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/inject/inject.h"
#include "common/uffd.h"
#include "ktest.h"
#include "target_kit.h"

#define TIMEOUT_MS 5000
#define PAGE 4096ul

static int kept_fd(const void *arg)
{
    (void)arg;
    struct error e = {0};
    struct target t;
    int fd, keep = -1;
    pid_t pid = kit_start(kit_polite, NULL);
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
    return kit_ends_well(pid);
}

#define ADVISED_BYTES (8ul << 20)

static int with_memory(void *opaque)
{
    (void)opaque;
    char *p = mmap(NULL, ADVISED_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(p, 1, ADVISED_BYTES);
    kit_shared->address = (uintptr_t)p;
    return kit_polite(NULL);
}

static int madvise_there(const void *arg)
{
    (void)arg;
    struct error e = {0};
    struct target t;
    pid_t pid = kit_start(with_memory, NULL);
    KTEST_CHECK(target_open(&t, pid, &e) == 0, "%s", e.message);
    enum page_presence presence[ADVISED_BYTES / PAGE];
    int r = inject_madvise(&t, kit_shared->address, ADVISED_BYTES, MADV_DONTNEED, 1 << 20,
                           TIMEOUT_MS, &e);
    KTEST_CHECK(r == 0, "%s", e.message);
    r = target_presence(&t, kit_shared->address, ADVISED_BYTES / PAGE, presence);
    KTEST_CHECK(r == 0, "presence: %d", r);
    for (size_t i = 0; i < ADVISED_BYTES / PAGE; i++)
        KTEST_CHECK(presence[i] == PAGE_ABSENT, "page %zu is still there", i);
    r = inject_madvise(&t, kit_shared->address + 1, PAGE, MADV_DONTNEED, 0, TIMEOUT_MS, &e);
    KTEST_CHECK(r == -EINVAL, "an address that is not aligned: %d", r);
    target_close(&t);
    return kit_ends_well(pid);
}

static int gone(const void *arg)
{
    (void)arg;
    struct error e = {0};
    struct target t;
    pid_t pid = kit_start(kit_polite, NULL);
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
    pid_t pid = kit_start(kit_polite, NULL);
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
    const struct ktest_case cases[] = {
        {"a descriptor kept", kept_fd, NULL},
        {"madvise", madvise_there, NULL},
        {"gone before", gone, NULL},
        {"dies meanwhile", dies_meanwhile, NULL},
    };
    kit_init();
    return ktest_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
