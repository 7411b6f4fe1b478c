/*
 * The process ends in mid-snapshot. With much memory that takes a while, in which it still counts
 * as alive and its memory is gone: exit code 10 all the same.
 */
#include <signal.h>
#include <unistd.h>

#include "tests/engine/stepping_test.h"

static void end_process(struct stepping_source *s)
{
    kill(s->pid, SIGKILL);
    usleep(3000);
}

int main(void)
{
    struct stepping_test t;
    int unable = stepping_test_begin(&t);
    if (unable)
        return unable;
    atomic_store(&t.board->noise, true);
    stepping_test_add(&t, STEPPING_ANON, 262144);
    if (!stepping_test_start(&t))
        return 1;
    t.source.resumed = end_process;
    struct snapshot_options options = stepping_options(t.image);
    json_t *summary;
    int ret = stepping_test_snapshot(&t, &options, &summary);
    int failed = ret == 0 || t.error.exit_code != VMSNAP_EXIT_TARGET ||
                 t.error.guest != GUEST_ENDED || access(t.image, F_OK) == 0;
    json_decref(summary);
    stepping_test_end(&t);
    return failed;
}
