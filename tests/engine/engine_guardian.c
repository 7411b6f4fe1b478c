/*
 * What the guardian makes of the worker's end.
 *
 * The worker could not resume the VM, and would take longer over the rest than one without a sign
 * of life is given; or is killed meanwhile. The guardian resumes it, and the error is still the
 * worker's own.
 *
 * Started by a program that ignores SIGCHLD, as some daemons and `trap '' CHLD` do: the kernel then
 * reaps our children itself. The end of the worker must be noticed all the same.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/engine/stepping_test.h"

#define STALL_MS 1000
#define SLOW_US 3000000u
#define WHY "there is no device state today"

/* Shared with the worker by fork() alone: set before it. */
static pid_t test_pid;

static int no_state(struct source *s, void **buf, size_t *len, struct error *e)
{
    (void)s, (void)buf, (void)len;
    return error_set(e, VMSNAP_EXIT_VMM, EIO, WHY);
}

static int cannot_resume(struct source *s, struct error *e)
{
    (void)s;
    return error_set(e, VMSNAP_EXIT_TIMEOUT, ETIMEDOUT, "the VMM does not answer");
}

static int slow_in_worker(struct source *s, struct error *e)
{
    (void)s, (void)e;
    if (getpid() != test_pid)
        usleep(SLOW_US);
    return 0;
}

static int resume_instead(struct source *s, struct error *e)
{
    (void)e;
    stepping_resume(((struct stepping_source *)s)->board);
    return 0;
}

/* `killed`: while it takes down what is left. */
static int snapshot_fails(struct stepping_test *t, bool killed)
{
    const struct source_ops *before = t->source.base.ops;
    struct source_ops ops = *before;
    ops.save_state = no_state;
    ops.resume = cannot_resume;
    ops.restore_memory = slow_in_worker;
    ops.resume_after_death = resume_instead;
    t->source.base.ops = &ops;
    struct snapshot_options options = stepping_options(t->image);
    options.max_stall_ms = STALL_MS;
    json_t *summary;
    test_pid = getpid();
    if (killed)
        setenv("VMSNAP_KILL_AT", "giving-up", 1);
    int ret = stepping_test_snapshot(t, &options, &summary);
    unsetenv("VMSNAP_KILL_AT");
    t->source.base.ops = before;
    json_decref(summary);
    if (ret == 0 || !strstr(t->error.message, WHY) || t->error.exit_code != VMSNAP_EXIT_VMM ||
        t->error.guest != GUEST_RUNNING) {
        printf("the worker's error is lost\n");
        return 1;
    }
    return !stepping_test_goes_on(t);
}

static int snapshot_works(struct stepping_test *t)
{
    struct snapshot_options options = stepping_options(t->image);
    json_t *summary;
    signal(SIGCHLD, SIG_IGN);
    alarm(30);
    int failed =
        stepping_test_snapshot(t, &options, &summary) != 0 || stepping_judge(t->image) != 0;
    json_decref(summary);
    return failed;
}

int main(void)
{
    struct stepping_test t;
    int unable = stepping_test_begin(&t);
    if (unable)
        return unable;
    stepping_test_add(&t, STEPPING_ANON, 2048);
    if (!stepping_test_start(&t))
        return 1;
    int failed = snapshot_fails(&t, false);
#ifdef VMSNAP_TEST_HOOKS
    failed |= snapshot_fails(&t, true);
#endif
    failed |= snapshot_works(&t);
    stepping_test_end(&t);
    return failed;
}
