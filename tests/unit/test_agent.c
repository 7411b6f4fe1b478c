/* The clock through the guest agent: one that is right, and agents that are not. The agent is a
 * child process on a socket pair that answers each line as its test says. */
#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/qemu/agent.h"

static int64_t offset_ns; /* the fake guest's clock, as against ours */

static void answer(FILE *out, const char *text)
{
    fprintf(out, "%s\n", text);
    fflush(out);
}

static void answer_sync(FILE *out, const char *line)
{
    const char *id = strstr(line, "\"id\":");
    fprintf(out, "\xff{\"return\": %lld}\n", id ? atoll(id + 5) : 0);
    fflush(out);
}

static void answer_time(FILE *out)
{
    fprintf(out, "{\"return\": %" PRId64 "}\n", (int64_t)clock_realtime_ns() + offset_ns);
    fflush(out);
}

/* Answers as qemu-ga does. */
static void be_good(FILE *out, const char *line)
{
    const char *time = strstr(line, "\"time\":");
    if (strstr(line, "guest-sync-delimited"))
        answer_sync(out, line);
    else if (strstr(line, "guest-get-time"))
        answer_time(out);
    else if (time) {
        offset_ns = atoll(time + 7) - (int64_t)clock_realtime_ns();
        answer(out, "{\"return\": {}}");
    }
}

/* What is left from before the snapshot, and then all is well. */
static void be_late(FILE *out, const char *line)
{
    if (strstr(line, "guest-sync-delimited")) {
        answer(out, "{\"return\": 7}");
        answer(out, "half a\xff{\"return\": 7}");
        for (int i = 0; i < 100000; i++)
            fputc('x', out);
        answer(out, "");
        answer(out, "{\"return\": {\"a\": [[[[");
    }
    be_good(out, line);
}

/* Sets the clock, but has no hwclock. */
static void lack_hwclock(FILE *out, const char *line)
{
    if (strstr(line, "\"time\":")) {
        offset_ns = 0;
        answer(out, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"hwclock failed\"}}");
    } else {
        be_good(out, line);
    }
}

static void refuse(FILE *out, const char *line)
{
    if (strstr(line, "\"time\":"))
        answer(out, "{\"error\": {\"desc\": \"no \\u001b[31mway\"}}");
    else
        be_good(out, line);
}

static void do_nothing(FILE *out, const char *line)
{
    if (strstr(line, "\"time\":"))
        answer(out, "{\"return\": {}}");
    else
        be_good(out, line);
}

static void talk_nonsense(FILE *out, const char *line)
{
    if (strstr(line, "guest-get-time"))
        answer(out, "{\"return\": \"soon\"}");
    else
        be_good(out, line);
}

static void be_silent(FILE *out, const char *line)
{
    (void)out, (void)line;
}

/* A guest that talks without end, and would have us listen. */
static void flood(FILE *out, char c)
{
    char text[4096];
    memset(text, c, sizeof(text));
    while (fwrite(text, sizeof(text), 1, out) == 1)
        continue;
}

static void send_lines(FILE *out, const char *line)
{
    (void)line;
    flood(out, '\n');
}

static void send_one_line(FILE *out, const char *line)
{
    (void)line;
    flood(out, 'x');
}

static void hang_up(FILE *out, const char *line)
{
    (void)out, (void)line;
    _exit(0);
}

static _Noreturn void run_agent(int fd, void (*reply)(FILE *out, const char *line))
{
    FILE *in = fdopen(fd, "r"), *out = fdopen(dup(fd), "w");
    char line[1024];
    while (fgets(line, sizeof(line), in))
        reply(out, line);
    _exit(0);
}

/* Sets the clock of a guest that is `behind_ns` behind, through such an agent. */
static int set_clock(void (*reply)(FILE *out, const char *line), int64_t behind_ns, int timeout_ms,
                     struct agent_clock *clock, struct error *e)
{
    int fds[2];
    offset_ns = -behind_ns;
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    pid_t child = fork();
    if (child == 0) {
        close(fds[0]);
        run_agent(fds[1], reply);
    }
    close(fds[1]);
    int rc =
        agent_set_clock(fds[0], clock_monotonic_ns() + (uint64_t)timeout_ms * 1000000u, clock, e);
    close(fds[0]);
    kill(child, SIGKILL);
    return rc;
}

static void becomes_right(void (*reply)(FILE *out, const char *line), int64_t behind_ns)
{
    struct agent_clock clock = {0};
    struct error e = {0};
    int rc = set_clock(reply, behind_ns, 10000, &clock, &e);
    cr_assert_eq(rc, 0, "%s", e.message);
    cr_assert(llabs(clock.behind_ns) < 1000000000, "behind by %" PRId64, clock.behind_ns);
}

static void fails(void (*reply)(FILE *out, const char *line), int wanted, const char *words)
{
    struct agent_clock clock = {0};
    struct error e = {0};
    uint64_t began = clock_monotonic_ns();
    int rc = set_clock(reply, 3600000000000, 300, &clock, &e);
    cr_assert_eq(rc, wanted, "%d: %s", rc, e.message);
    cr_assert(strstr(e.message, words), "\"%s\" not in \"%s\"", words, e.message);
    cr_assert(clock_monotonic_ns() - began < 5000000000, "within the deadline");
}

Test(agent, sets_the_clock)
{
    becomes_right(be_good, 3600000000000);
    becomes_right(be_good, -3600000000000);
    becomes_right(be_good, 0);
}

Test(agent, what_is_left_in_the_port_is_thrown_away)
{
    becomes_right(be_late, 3600000000000);
}

Test(agent, what_counts_is_the_clock)
{
    becomes_right(lack_hwclock, 3600000000000);
    fails(do_nothing, -ERANGE, " ms behind");
}

Test(agent, says_what_is_wrong)
{
    fails(refuse, -EPROTO, "no ?[31mway");
    fails(talk_nonsense, -EPROTO, "tells no time");
    fails(hang_up, -EPIPE, "closed");
}

Test(agent, waits_no_longer_than_it_may)
{
    fails(be_silent, -ETIMEDOUT, "does not answer");
    fails(send_lines, -ETIMEDOUT, "does not answer");
    fails(send_one_line, -ETIMEDOUT, "does not answer");
}
