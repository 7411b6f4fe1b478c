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

#include "common/kernel.h"
#include "tests/engine/stepping_source.h"

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
 * must. */
static int discard_in_snapshot(void (*resumed)(struct stepping_source *s))
{
    struct error e = {0};
    struct stepping_board *board = stepping_board_new();
    board->n_blocks = 1;
    board->blocks[0] = (struct stepping_block){.kind = STEPPING_ANON, .n_pages = 32768};
    struct stepping_source source;
    if (!stepping_source_open(&source, board))
        return 1;
    source.resumed = resumed;
    char image[] = "/tmp/vmsnap-engine-discard";
    unlink(image);
    struct snapshot_options options = stepping_options(image);
    json_t *summary = NULL;
    int ret = snapshot_run_from(&source.base, &options, &summary, &e);
    printf("%d: exit code %d: %s\n", ret, e.exit_code, e.message);
    int failed = ret == 0 || e.exit_code != VMSNAP_EXIT_FAILED || !strstr(e.message, "discarded") ||
                 e.guest != GUEST_RUNNING || access(image, F_OK) == 0;
    uint64_t before = atomic_load(&board->written);
    usleep(50000);
    if (atomic_load(&board->written) == before) {
        printf("the process stands\n");
        failed = 1;
    }
    if (atomic_load(&board->wrong)) {
        printf("the process stood for as long as its VMM waited for it\n");
        failed = 1;
    }
    stepping_source_close(&source);
    unlink(image);
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
    struct error e = {0};
    if (geteuid() != 0 || kernel_require(&e)) {
        printf("skipped: needs root and userfaultfd (%s)\n", e.message);
        return 77;
    }
    int failed = discard_in_snapshot(discard) || discard_in_snapshot(discard_and_wait);
    return failed ? failed : held();
}
