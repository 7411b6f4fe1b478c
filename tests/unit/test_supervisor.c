/*
 * A supervisor that gets no process for another server: it tries again, in time and without end. In
 * a child, which may start no process; a plain program, since it forks.
 */
#include <errno.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "restore/supervisor_internal.h"
#include "tests/unit/plain_check.h"

#define NOBODY 65534
#define SECOND_NS 1000000000ull
#define TRIES 30 /* more than servers that fail have */
#define SKIPPED 77

/* Root is bound by no such limit. */
static bool forbid_processes(void)
{
    const struct rlimit none = {0};
    if (setrlimit(RLIMIT_NPROC, &none) || (geteuid() == 0 && setuid(NOBODY)))
        return false;
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    return pid < 0;
}

static void tries_again_without_end(void)
{
    uint64_t now = clock_monotonic_ns();
    struct supervisor s = {.lives = true,
                           .vmm = getpid(),
                           .vmm_fd = -1,
                           .line = -1,
                           .signal_fd = -1,
                           .began_ns = now - 20 * SECOND_NS}; /* the last one lived long */
    for (int i = 0; i < TRIES; i++) {
        now = clock_monotonic_ns();
        supervisor_start_server(&s);
        CHECK(s.server == 0);
        CHECK(s.next_ns >= now + SECOND_NS / 2);
        CHECK(supervisor_wants_server(&s));
    }
}

int main(void)
{
    int status = -1;
    pid_t child = fork();
    if (child == 0) {
        if (!forbid_processes())
            _exit(SKIPPED);
        tries_again_without_end();
        _exit(check_result());
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
    return WEXITSTATUS(status) ? WEXITSTATUS(status) : check_result();
}
