#include <criterion/criterion.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "common/progress.h"

/* Puts a pipe in stderr's place; returns its other end. */
static int catch_stderr(void)
{
    int fds[2];
    cr_assert_eq(pipe2(fds, O_NONBLOCK), 0);
    cr_assert_eq(dup2(fds[1], STDERR_FILENO), STDERR_FILENO);
    close(fds[1]);
    return fds[0];
}

static const char *read_all(int fd)
{
    static char text[4096];
    ssize_t n = read(fd, text, sizeof(text) - 1);
    text[n > 0 ? n : 0] = '\0';
    return text;
}

Test(progress, the_line_says_how_far_how_fast_how_long)
{
    struct progress p = {.what = "saved", .bytes_per_s = 512.0 * (1 << 20)};
    char text[256];
    progress_text(text, sizeof(text), &p, 1ull << 30, 4ull << 30, 2210);
    cr_assert_str_eq(text, "saved 1.0 GiB of 4.0 GiB (25 %), 512 MiB/s, 2210 faults, 6 s left");
    progress_text(text, sizeof(text), &p, 4ull << 30, 4ull << 30, 1);
    cr_assert_str_eq(text, "saved 4.0 GiB of 4.0 GiB (100 %), 512 MiB/s, 1 fault");
    p.bytes_per_s = 0;
    progress_text(text, sizeof(text), &p, 0, 0, 0);
    cr_assert_str_eq(text, "saved 0 B of 0 B (100 %), 0 B/s, 0 faults");
}

Test(progress, nothing_is_printed_unasked_into_a_pipe)
{
    int fd = catch_stderr();
    struct progress p;
    progress_start(&p, "saved", false);
    for (int i = 0; i < 100; i++)
        progress_update(&p, (uint64_t)i, 100, 0);
    progress_finish(&p);
    cr_assert_str_eq(read_all(fd), "");
}

Test(progress, the_line_is_redrawn_five_times_a_second_at_most)
{
    int fd = catch_stderr();
    struct progress p;
    progress_start(&p, "saved", true);
    for (int i = 0; i < 50; i++)
        progress_update(&p, (uint64_t)i, 100, 0);
    const char *text = read_all(fd);
    cr_assert(strncmp(text, "\r\033[Ksaved ", 10) == 0);
    cr_assert_null(strchr(text + 1, '\r'), "drawn twice within 200 ms");
    progress_finish(&p);
    cr_assert_str_eq(read_all(fd), "\r\033[K");
}

Test(progress, a_signal_asks_for_one_line)
{
    int fd = catch_stderr();
    struct progress p;
    progress_catch_signal();
    progress_start(&p, "filled", false);
    raise(SIGUSR1);
    progress_update(&p, 50, 100, 3);
    progress_update(&p, 60, 100, 3);
    cr_assert_str_eq(read_all(fd), "vmsnap: filled 50 B of 100 B (50 %), 0 B/s, 3 faults\n");
}

Test(progress, what_others_have_done_counts_for_no_rate)
{
    struct progress p;
    progress_start(&p, "filled", false);
    progress_begin_at(&p, 400 << 20);
    usleep(200000);
    progress_update(&p, 401 << 20, 500 << 20, 0);
    cr_assert_lt(p.bytes_per_s, 5.1 * (1 << 20));
    cr_assert_gt(p.bytes_per_s, 1 << 20);
}

Test(progress, a_burst_is_forgotten_after_three_seconds)
{
    struct progress p;
    progress_start(&p, "filled", false);
    uint64_t bytes = 100 << 20;
    for (int i = 0; i < 18; i++) {
        usleep(200000);
        progress_update(&p, bytes += 100 << 10, 500 << 20, 0);
    }
    cr_assert_lt(p.bytes_per_s, 1 << 20);
}

Test(progress, what_is_left_comes_no_faster_than_the_limit)
{
    struct progress p = {.bytes_per_s = 1e9, .limit_per_s = 1 << 20};
    cr_assert_eq(progress_left_ns(&p, 6 << 20, 8 << 20), 2000000000);
    p.open_ended = true;
    cr_assert_eq(progress_left_ns(&p, 6 << 20, 8 << 20), -1);
}
