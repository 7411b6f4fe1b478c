#include "ktest.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"

#define MAX_CHILDREN 64

static pid_t children[MAX_CHILDREN];
static unsigned n_children;

void ktest_say(const char *file, int line, const char *condition)
{
    const char *base = strrchr(file, '/');
    printf("    %s:%d: not true: %s\n", base ? base + 1 : file, line, condition);
}

pid_t ktest_spawn(int (*fn)(void *opaque), void *opaque)
{
    fflush(NULL);
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid < 0 || n_children == MAX_CHILDREN) {
        perror("fork");
        exit(KTEST_FAIL);
    }
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(KTEST_FAIL);
        n_children = 0;
        int code = fn(opaque);
        fflush(NULL);
        _exit(code);
    }
    children[n_children++] = pid;
    return pid;
}

static void forget(pid_t pid)
{
    for (unsigned i = 0; i < n_children; i++) {
        if (children[i] == pid)
            children[i] = children[--n_children];
    }
}

void ktest_end(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    forget(pid);
}

int ktest_reap(pid_t pid, int timeout_ms)
{
    int status;
    for (int i = 0; i <= timeout_ms * 2; i++) {
        if (waitpid(pid, &status, WNOHANG) == pid) {
            forget(pid);
            return status;
        }
        ktest_nap();
    }
    return -1;
}

bool ktest_ended(pid_t pid)
{
    siginfo_t si = {0};
    return waitid(P_PID, (id_t)pid, &si, WEXITED | WNOHANG | WNOWAIT) != 0 || si.si_pid == pid;
}

void *ktest_shared(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        perror("mmap");
        exit(KTEST_FAIL);
    }
    return p;
}

void ktest_nap(void)
{
    struct timespec t = {.tv_nsec = 500000};
    nanosleep(&t, NULL);
}

long ktest_blocked_in(pid_t pid, pid_t tid)
{
    char path[64];
    long nr = -1;
    snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", (int)pid, (int)tid);
    CLEANUP_STREAM FILE *f = fopen(path, "re");
    if (!f || fscanf(f, "%ld", &nr) != 1)
        return -1;
    return nr;
}

uint64_t ktest_status(pid_t pid, const char *key)
{
    char path[64], line[256];
    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    CLEANUP_STREAM FILE *f = fopen(path, "re");
    size_t n = strlen(key);
    while (f && fgets(line, sizeof(line), f)) {
        if (strncmp(line, key, n) == 0 && line[n] == ':')
            return strtoull(line + n + 1, NULL, 10);
    }
    return 0;
}

static char scratch[4][128];
static unsigned n_scratch;

void ktest_scratch(const char *path)
{
    if (n_scratch < sizeof(scratch) / sizeof(scratch[0]))
        snprintf(scratch[n_scratch++], sizeof(scratch[0]), "%s", path);
}

static int run_case(const struct ktest_case *c)
{
    struct timespec t0, t1;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    int result = c->run(c->arg);
    while (n_children > 0)
        ktest_end(children[0]);
    while (n_scratch > 0)
        unlink(scratch[--n_scratch]);
    clock_gettime(CLOCK_MONOTONIC, &t1);
    double s = (double)(t1.tv_sec - t0.tv_sec) + (double)(t1.tv_nsec - t0.tv_nsec) / 1e9;
    const char *word = result == KTEST_PASS ? "ok" : result == KTEST_SKIP ? "skip" : "FAIL";
    printf("%-4s %s (%.2f s)\n", word, c->name, s);
    return result;
}

int ktest_main(int argc, char **argv, const struct ktest_case *cases, size_t n)
{
    unsigned passed = 0, failed = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; i < n; i++) {
        if (argc > 1 && !strstr(cases[i].name, argv[1]))
            continue;
        int result = run_case(&cases[i]);
        passed += result == KTEST_PASS;
        failed += result != KTEST_PASS && result != KTEST_SKIP;
    }
    if (failed)
        return KTEST_FAIL;
    return passed ? KTEST_PASS : KTEST_SKIP;
}
