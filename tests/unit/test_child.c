/*
 * How processes of our own end: one that has yet to get a CPU for that does not count as one that
 * hangs in the kernel, and neither is left as a zombie. A plain program: it forks.
 */
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/child.h"
#include "common/thread.h"
#include "tests/unit/plain_check.h"

#define ROUNDS 20
#define LARGE_BYTES (64u << 20)
#define WAIT_TRIES 4000 /* of a millisecond */

static volatile unsigned long work;

/* Never sleeps, and takes its time to end: its memory is to be freed. */
static void be_busy(void *opaque)
{
    char *memory = opaque;
    for (size_t at = 0; at < LARGE_BYTES; at += 4096)
        memory[at] = 1;
    for (;;)
        work++;
}

static bool has_child(void)
{
    return waitpid(-1, NULL, WNOHANG | __WALL) >= 0 || errno != ECHILD;
}

static void one_that_runs_is_waited_for(void)
{
    const int keep = STDERR_FILENO;
    void *memory =
        mmap(NULL, LARGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    for (int i = 0; i < ROUNDS; i++) {
        int pidfd = child_fork(&keep, 1, be_busy, memory);
        CHECK(pidfd >= 0);
        usleep(i % 2 ? 0 : 20000);
        int tries = WAIT_TRIES;
        while (!child_is_starved(pidfd) && --tries)
            usleep(1000);
        CHECK(tries > 0);
        CHECK(child_end_patiently(pidfd, 0) == 0);
        CHECK(!has_child());
    }
    munmap(memory, LARGE_BYTES);
}

static void sleepers_are_told_from_others(void)
{
    CHECK(thread_is_starved(getpid()));
    pid_t sleeper = fork();
    if (sleeper == 0) {
        pause();
        _exit(0);
    }
    int tries = WAIT_TRIES;
    while (thread_is_starved(sleeper) && --tries)
        usleep(1000);
    CHECK(tries > 0);
    CHECK(kill(sleeper, SIGKILL) == 0);
    CHECK(waitpid(sleeper, NULL, 0) == sleeper);
    CHECK(!thread_is_starved(sleeper)); /* there is none */
}

int main(void)
{
    one_that_runs_is_waited_for();
    sleepers_are_told_from_others();
    return check_result();
}
