/*
 * Memory that is discarded in mid-snapshot, before it was saved: the snapshot fails cleanly and
 * says so, nothing is published, the process goes on. Also when the fault thread, which has read of
 * it and so let the discard go on, is held before it looks what was saved: the sweep must not take
 * what it finds absent then for zeros of the instant.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/engine/stepping_test.h"

/* In the worker, right after the instant: block 0 is thrown away. */
static void discard(struct stepping_source *s)
{
    atomic_store(&s->board->discard, true);
    while (!atomic_load(&s->board->discarded))
        usleep(100);
    usleep(2000);
}

/* The same by a VMM that then does not answer until its guest gets on: nobody else is there to drop
 * protection. */
static void discard_and_wait(struct stepping_source *s)
{
    discard(s);
    uint64_t before = atomic_load(&s->board->written);
    for (int tries = 0; atomic_load(&s->board->written) < before + 1000; tries++) {
        if (tries == 3000) {
            atomic_fetch_add(&s->board->wrong, 1);
            return;
        }
        usleep(1000);
    }
}

/* A snapshot of a process that throws its memory away right after the instant. 0: it failed as it
 * must; 77: it can't be tried here. */
static int discard_in_snapshot(void (*resumed)(struct stepping_source *s))
{
    struct stepping_test t;
    int unable = stepping_test_begin(&t);
    if (unable)
        return unable;
    stepping_test_add(&t, STEPPING_ANON, 32768);
    if (!stepping_test_start(&t))
        return 1;
    t.source.resumed = resumed;
    struct snapshot_options options = stepping_options(t.image);
    json_t *summary;
    int ret = stepping_test_snapshot(&t, &options, &summary);
    int failed = ret == 0 || t.error.exit_code != VMSNAP_EXIT_FAILED ||
                 !strstr(t.error.message, "discarded") || t.error.guest != GUEST_RUNNING ||
                 access(t.image, F_OK) == 0 || !stepping_test_goes_on(&t);
    if (atomic_load(&t.board->wrong)) {
        printf("the process stood for as long as its VMM waited for it\n");
        failed = 1;
    }
    json_decref(summary);
    stepping_test_end(&t);
    return failed;
}

#ifdef VMSNAP_TEST_HOOKS
/* Holds the fault thread at the point for as long as the sweep would take. */
static pid_t hold_fault_thread(char *log)
{
    char go[64];
    snprintf(go, sizeof(go), "%s.go", log);
    unlink(log);
    unlink(go);
    setenv("VMSNAP_PAUSE_AT", "faults-discard", 1);
    setenv("VMSNAP_PAUSE_LOG", log, 1);
    pid_t pid = fork();
    if (pid == 0) {
        for (int tries = 0; access(log, F_OK) && tries < 5000; tries++)
            usleep(1000);
        usleep(700000);
        close(open(go, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
        _exit(0);
    }
    return pid;
}

static int held(void)
{
    char log[] = "/tmp/vmsnap-engine-discard-log", go[] = "/tmp/vmsnap-engine-discard-log.go";
    pid_t pid = hold_fault_thread(log);
    int failed = discard_in_snapshot(discard);
    waitpid(pid, NULL, 0);
    failed |= access(log, F_OK) != 0;
    unlink(log);
    unlink(go);
    return failed;
}
#else
static int held(void)
{
    return 0;
}
#endif

int main(void)
{
    int result = discard_in_snapshot(discard);
    if (!result)
        result = discard_in_snapshot(discard_and_wait);
    return result ? result : held();
}
