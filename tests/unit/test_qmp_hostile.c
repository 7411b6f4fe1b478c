/* The QMP client and a server that says what no QMP server would, or never stops. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "tests/unit/qmp_server.h"

TestSuite(qmp_hostile, .fini = server_tidy, .timeout = 20);

/* Hostile answers to command 2. Each must be an error, at once, and end the connection. */
static void refused_bytes(const char *bytes, size_t len)
{
    server_greets();
    server_write(bytes, len);
    uint64_t from = clock_monotonic_ns();
    json_t *result = NULL;
    int r = ask(LONG_MS, &result);
    cr_assert_eq(r, -EPROTO, "%s: %d", bytes, r);
    cr_assert_null(result);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TARGET);
    cr_assert_lt(clock_monotonic_ns() - from, 1000000000u);
    cr_assert_eq(ask(LONG_MS, NULL), -EPIPE);
    qmp_close(q);
    q = NULL;
    close(server_fd);
    client_fd = server_fd = -1;
}

static void refused(const char *line)
{
    refused_bytes(line, strlen(line));
}

Test(qmp_hostile, hostile_replies)
{
    refused("nonsense\r\n");
    refused("5\r\n");
    refused("\"text\"\r\n");
    refused("null\r\n");
    refused("[{\"return\": {}}]\r\n");
    refused("{\"foo\": 1}\r\n");
    refused("{\"return\": {}}\r\n"); /* without our id */
    refused("{\"return\": {}, \"id\": 2}\r\n");
    refused("{\"return\": {}, \"id\": {\"a\": [1, 2]}}\r\n");
    refused("{\"event\": 5}\r\n");
    refused("{\"event\": null}\r\n");
    refused("{\"event\": [\"STOP\"]}\r\n");
    refused("{\"return\": {}, \"return\": {}}\r\n");
    refused("{\"return\": 99999999999999999999999}\r\n");
    refused("{\"return\": \"\xc3\x28\"}\r\n");     /* not UTF-8 */
    refused("{\"return\": \"\xed\xa0\x80\"}\r\n"); /* a surrogate */
    refused("{\"return\": \"a\\u0000b\"}\r\n");
    refused("{\"return\": \"\x01\"}\r\n");
    refused("{\"return\": {}} {\"return\": {}}\r\n");
    refused_bytes("{\"return\": \"a\0b\"}\r\n", 19);
    refused_bytes("\0\0\0\0\n", 5);
}

Test(qmp_hostile, error_of_wrong_shape)
{
    server_greets();
    server_say("{\"error\": 5, \"id\": \"vmsnap-%d-2\"}\r\n", (int)getpid());
    cr_assert_eq(ask(LONG_MS, NULL), -EPROTO);
    server_say("{\"error\": {\"class\": [], \"desc\": {}}, \"id\": \"vmsnap-%d-3\"}\r\n",
               (int)getpid());
    cr_assert_eq(ask(LONG_MS, NULL), -EPROTO);
}

Test(qmp_hostile, deep_nesting)
{
    server_greets();
    char deep[40000];
    memset(deep, '[', sizeof(deep));
    memcpy(deep, "{\"return\": ", 11);
    memcpy(deep + sizeof(deep) - 2, "\r\n", 2);
    server_write(deep, sizeof(deep));
    cr_assert_eq(ask(LONG_MS, NULL), -EPROTO);
}

static void say_as(void)
{
    static char a[65536];
    memset(a, 'a', sizeof(a));
    server_write(a, sizeof(a));
}

static void say_open_braces(void)
{
    server_write("{\n", 2);
}

static void say_unending_array(void)
{
    static bool begun;
    if (!begun)
        server_write("{\"a\":[\n", 7);
    begun = true;
    server_write("{},\n{},\n{},\n{},\n{},\n{},\n", 24);
}

static void say_events(void)
{
    server_write("{\"event\": \"X\"}\r\n", 16);
}

static void say_blank_lines(void)
{
    server_write("\r\n\r\n\r\n\r\n", 8);
}

/* A stream that never ends in a reply: an error within the deadline, or when it is too long. */
static void endless(void (*say_it)(void), int expected)
{
    server_greets();
    server_fork(say_it);
    uint64_t from = clock_monotonic_ns();
    int r = ask(1000, NULL);
    cr_assert_eq(r, expected, "%d %s", r, err.message);
    cr_assert_lt(clock_monotonic_ns() - from, 4000000000u);
}

Test(qmp_hostile, endless_without_newline)
{
    endless(say_as, -EPROTO);
    cr_assert(strstr(err.message, "longer than 4 MiB"), "%s", err.message);
}

Test(qmp_hostile, endless_open_braces)
{
    endless(say_open_braces, -EPROTO);
}

Test(qmp_hostile, endless_array)
{
    endless(say_unending_array, -ETIMEDOUT);
}

Test(qmp_hostile, endless_events)
{
    endless(say_events, -ETIMEDOUT);
}

Test(qmp_hostile, endless_blank_lines)
{
    endless(say_blank_lines, -ETIMEDOUT);
}

Test(qmp_hostile, peer_that_never_reads)
{
    server_greets();
    char *huge = malloc(8u << 20);
    memset(huge, 'x', (8u << 20) - 1);
    huge[(8u << 20) - 1] = '\0';
    json_t *args = json_pack("{s:s}", "line", huge);
    free(huge);
    uint64_t from = clock_monotonic_ns();
    cr_assert_eq(qmp_command(q, "x", args, -1, SHORT_MS, NULL, &err), -ETIMEDOUT);
    cr_assert_lt(clock_monotonic_ns() - from, 3000000000u);
}
