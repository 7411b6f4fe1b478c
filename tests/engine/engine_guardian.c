/*
 * Started by a program that ignores SIGCHLD, as some daemons and `trap '' CHLD` do: the kernel then
 * reaps our children itself. The end of the worker must be noticed all the same.
 */
#include <signal.h>
#include <unistd.h>

#include "tests/engine/stepping_test.h"

int main(void)
{
    struct stepping_test t;
    int unable = stepping_test_begin(&t);
    if (unable)
        return unable;
    stepping_test_add(&t, STEPPING_ANON, 2048);
    if (!stepping_test_start(&t))
        return 1;
    struct snapshot_options options = stepping_options(t.image);
    json_t *summary;
    signal(SIGCHLD, SIG_IGN);
    alarm(30);
    int failed =
        stepping_test_snapshot(&t, &options, &summary) != 0 || stepping_judge(t.image) != 0;
    json_decref(summary);
    stepping_test_end(&t);
    return failed;
}
