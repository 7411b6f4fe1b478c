/* What goes to stderr for a person: one line each, and whose guest it is about. */
#include <criterion/criterion.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"

static int out;

static void catch_stderr(void)
{
    int ends[2];
    cr_assert_eq(pipe(ends), 0);
    cr_assert_eq(dup2(ends[1], STDERR_FILENO), STDERR_FILENO);
    close(ends[1]);
    out = ends[0];
}

static const char *said(void)
{
    static char text[4096];
    ssize_t n = read(out, text, sizeof(text) - 1);
    cr_assert(n > 0);
    text[n] = '\0';
    return text;
}

TestSuite(log, .init = catch_stderr, .timeout = 10);

Test(log, a_line)
{
    log_warn("%d pages are lost", 3);
    cr_assert_str_eq(said(), "vmsnap: warning: 3 pages are lost\n");
}

Test(log, names_the_process_once)
{
    log_set_process(12);
    log_warn("its storage does not answer");
    cr_assert_str_eq(said(), "vmsnap: warning: process 12: its storage does not answer\n");
    log_warn("server 7 of process 12 was ended");
    cr_assert_str_eq(said(), "vmsnap: warning: server 7 of process 12 was ended\n");
    log_warn("process 123 has ended");
    cr_assert_str_eq(said(), "vmsnap: warning: process 12: process 123 has ended\n");
    log_set_process(0);
    log_warn("all");
    cr_assert_str_eq(said(), "vmsnap: warning: all\n");
}

Test(log, a_long_line_ends)
{
    char text[3000];
    memset(text, 'a', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    log_set_process(12);
    log_warn("%s", text);
    const char *line = said();
    cr_assert_eq(line[strlen(line) - 1], '\n');
    cr_assert_eq(strncmp(line, "vmsnap: warning: process 12: aaa", 32), 0);
    cr_assert_gt(strlen(line), 1000);
}
