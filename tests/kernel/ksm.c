/*
 * KSM, which QEMU asks for by default, takes write protection away without an event when it merges
 * pages. Unmerged first, by injection, every first write gives its event while ksmd runs.
 *
 * Switches ksmd on for the whole host for some seconds. A guard process puts the settings back,
 * also when the test is killed.
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/inject/inject.h"
#include "common/uffd.h"
#include "ktest.h"
#include "puppet.h"

#define PAGE 4096ul
#define N_PAGES 2000ul
#define TIMEOUT_MS 5000
#define DIRECTORY "/sys/kernel/mm/ksm/"
#define N_SETTINGS 3

static const char *const names[N_SETTINGS] = {"run", "pages_to_scan", "sleep_millisecs"};
static char before[N_SETTINGS][32];

static bool setting_read(const char *name, char *value, size_t size)
{
    char path[128];
    snprintf(path, sizeof(path), DIRECTORY "%s", name);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, value, size - 1);
    if (n <= 0)
        return false;
    value[n] = '\0';
    return true;
}

static bool setting_write(const char *name, const char *value)
{
    char path[128];
    snprintf(path, sizeof(path), DIRECTORY "%s", name);
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd >= 0 && write(fd, value, strlen(value)) > 0;
}

/* Reads the settings and starts the guard, which puts them back when this process ends. Its end of
 * the pipe tells: nobody else may hold the other. */
static pid_t guard_start(int *alive)
{
    int ends[2];
    for (int i = 0; i < N_SETTINGS; i++) {
        if (!setting_read(names[i], before[i], sizeof(before[i])))
            return -1;
    }
    if (pipe2(ends, O_CLOEXEC) != 0)
        return -1;
    pid_t pid = fork();
    if (pid == 0) {
        char byte;
        setsid();
        signal(SIGTERM, SIG_IGN);
        close(ends[1]);
        while (read(ends[0], &byte, 1) > 0)
            ;
        for (int i = N_SETTINGS - 1; i >= 0; i--)
            setting_write(names[i], before[i]);
        _exit(0);
    }
    close(ends[0]);
    *alive = ends[1];
    return pid;
}

/* Merged pages of a process (Linux 5.19). */
static uint64_t merged_pages(pid_t pid)
{
    char path[64];
    unsigned long n = 0;
    snprintf(path, sizeof(path), "/proc/%d/ksm_merging_pages", (int)pid);
    CLEANUP_STREAM FILE *f = fopen(path, "re");
    return f && fscanf(f, "%lu", &n) == 1 ? n : 0;
}

static bool all(size_t page)
{
    (void)page;
    return true;
}

/* A puppet whose pages ksmd has merged: there are 251 different ones. */
static struct puppet *start_merged(struct region *r)
{
    struct error e = {0};
    struct puppet *p = puppet_start(PUPPET_ANON, N_PAGES * PAGE, all);
    if (!p || !puppet_madvise(p, 0, N_PAGES, MADV_MERGEABLE) || puppet_region(p, r, &e) != 0)
        return NULL;
    return KTEST_WAIT(merged_pages(puppet_pid(p)) >= N_PAGES / 2) ? p : NULL;
}

static int arm(const struct puppet *p, const struct region *r)
{
    struct error e = {0};
    int fd;
    int err = inject_userfaultfd(puppet_target(p), &fd, NULL, TIMEOUT_MS, &e);
    if (err == 0)
        err = uffd_enable(fd, UFFD_FEATURE_PAGEFAULT_FLAG_WP);
    if (err == 0)
        err = uffd_register(fd, r->hva, r->bytes,
                            UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP, NULL);
    if (err == 0)
        err = uffd_protect(fd, r->hva, r->bytes);
    return err ? err : fd;
}

/* Serves the faults of a puppet that writes to every page. Each page at its event has its old
 * content. The number of pages with an event, or -1. */
static int serve_all(struct puppet *p, const struct region *r, int fd)
{
    static bool seen[N_PAGES];
    int n = 0;
    memset(seen, 0, sizeof(seen));
    puppet_write_all_begin(p, 0, N_PAGES, 0xcc);
    uint64_t end_ns = clock_monotonic_ns() + 20000000000u;
    while (clock_monotonic_ns() < end_ns) {
        struct uffd_msg msg;
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        uint8_t content[PAGE];
        if (uffd_read_messages(fd, &msg, 1) != 1) {
            if (puppet_is_done(p))
                return n;
            poll(&wait, 1, 5);
            continue;
        }
        size_t page = (msg.arg.pagefault.address - r->hva) / PAGE;
        if (region_read(r, puppet_target(p), page * PAGE, 1, content, NULL, NULL) != 0 ||
            content[PAGE / 2] != puppet_pattern(page))
            return -1;
        n += !seen[page];
        seen[page] = true;
        if (uffd_unprotect(fd, r->hva + page * PAGE, PAGE) != 0)
            return -1;
    }
    return -1;
}

static int write_all_under_ksmd(struct puppet *p, const struct region *r)
{
    int fd = arm(p, r);
    if (fd < 0)
        return -1;
    usleep(500000); /* several rounds of ksmd */
    int n = serve_all(p, r, fd);
    close(fd);
    return n;
}

/* Not a rule that a kernel must keep, but why the next case is there. */
static int merged(const void *arg)
{
    (void)arg;
    struct region r;
    struct puppet *p = start_merged(&r);
    KTEST_SKIP_IF(!p, "ksmd does not merge here");
    KTEST_CHECK(r.mergeable, "the region is not said to be mergeable");
    int n = write_all_under_ksmd(p, &r);
    printf("    mergeable: %d of %lu first writes gave an event\n", n, N_PAGES);
    KTEST_CHECK(n >= 0, "an event, or a content, was wrong");
    return KTEST_PASS;
}

static int unmerged(const void *arg)
{
    (void)arg;
    struct region r;
    struct error e = {0};
    struct puppet *p = start_merged(&r);
    KTEST_SKIP_IF(!p, "ksmd does not merge here");
    uint64_t t0 = clock_monotonic_ns();
    int err =
        inject_madvise(puppet_target(p), r.hva, r.bytes, MADV_UNMERGEABLE, 1 << 20, TIMEOUT_MS, &e);
    KTEST_CHECK(err == 0, "%s", e.message);
    printf("    unmerged %lu pages in %.1f ms\n", N_PAGES,
           (double)(clock_monotonic_ns() - t0) / 1e6);
    struct region now;
    KTEST_CHECK(puppet_region(p, &now, &e) == 0 && !now.mergeable, "still mergeable");
    int n = write_all_under_ksmd(p, &r);
    KTEST_CHECK(n == (int)N_PAGES, "%d of %lu first writes gave an event", n, N_PAGES);
    err = inject_madvise(puppet_target(p), r.hva, r.bytes, MADV_MERGEABLE, 0, TIMEOUT_MS, &e);
    KTEST_CHECK(err == 0 && puppet_region(p, &now, &e) == 0 && now.mergeable, "%s", e.message);
    return KTEST_PASS;
}

int main(int argc, char **argv)
{
    const struct ktest_case cases[] = {
        {"what merging does to protection", merged, NULL},
        {"unmerged first", unmerged, NULL},
    };
    int alive = -1;
    pid_t guard = guard_start(&alive);
    if (guard < 0) {
        printf("    skip: no KSM in this kernel\n");
        return KTEST_SKIP;
    }
    int result = KTEST_SKIP;
    if (setting_write("pages_to_scan", "20000") && setting_write("sleep_millisecs", "5") &&
        setting_write("run", "1"))
        result = ktest_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
    close(alive);
    waitpid(guard, NULL, 0);
    return result;
}
