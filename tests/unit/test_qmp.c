/*
 * The QMP client against a server that the test plays itself: what it says is put into one end of a
 * socket pair beforehand (ids are predictable: "vmsnap-PID-N"), or by a child where it is too much
 * for the socket's buffer.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/qmp.h"

#define GREETING "{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n"
#define LONG_MS 5000
#define SHORT_MS 100

static struct qmp *q;
static int server = -1, client = -1;
static pid_t child;
static struct error err;

static void write_all(const char *bytes, size_t len)
{
    while (len > 0) {
        ssize_t n = send(server, bytes, len, MSG_NOSIGNAL);
        if (n <= 0)
            _exit(0); /* only a child gets here: the client has had enough */
        bytes += n;
        len -= (size_t)n;
    }
}

/* Puts a line of the server's into the socket. "%d" is for our pid in an id. */
__attribute__((format(printf, 1, 2))) static void say(const char *fmt, ...)
{
    char line[8192];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    cr_assert(n > 0 && (size_t)n < sizeof(line));
    write_all(line, (size_t)n);
}

static void say_reply(int id, const char *value)
{
    say("{\"return\": %s, \"id\": \"vmsnap-%d-%d\"}\r\n", value, (int)getpid(), id);
}

static void open_pair(void)
{
    int fds[2];
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    client = fds[0];
    server = fds[1];
}

/* A connection on which command 1, qmp_capabilities, is done. */
static void connected(void)
{
    open_pair();
    say(GREETING);
    say_reply(1, "{}");
    cr_assert_eq(qmp_attach(&q, client, LONG_MS, &err), 0, "%s", err.message);
}

static void tidy(void)
{
    if (child > 0) {
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    qmp_close(q);
    if (!q && client >= 0)
        close(client);
    close(server);
}

/* A child that runs `say_it` for ever. */
static void start_child(void (*say_it)(void))
{
    child = fork();
    cr_assert(child >= 0);
    if (child == 0) {
        close(client);
        for (;;)
            say_it();
    }
    close(server);
    server = -1;
}

static int command(int timeout_ms, json_t **result)
{
    return qmp_command(q, "query-status", NULL, -1, timeout_ms, result, &err);
}

TestSuite(qmp, .fini = tidy, .timeout = 20);

Test(qmp, greets_and_negotiates)
{
    connected();
    char sent[256] = "";
    cr_assert(recv(server, sent, sizeof(sent) - 1, MSG_DONTWAIT) > 0);
    cr_assert(strstr(sent, "\"execute\":\"qmp_capabilities\""));
    cr_assert_eq(sent[strlen(sent) - 1], '\n');
}

Test(qmp, no_greeting_is_a_busy_socket)
{
    open_pair();
    uint64_t from = clock_monotonic_ns();
    cr_assert_eq(qmp_attach(&q, client, SHORT_MS, &err), -ETIMEDOUT);
    cr_assert_lt(clock_monotonic_ns() - from, 2000000000u);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TIMEOUT);
    cr_assert(strstr(err.hint, "second -qmp"), "%s", err.hint);
}

static void not_qmp(const char *greeting)
{
    open_pair();
    say("%s", greeting);
    int r = qmp_attach(&q, client, LONG_MS, &err);
    cr_assert(r < 0 && r != -ETIMEDOUT, "%s: %d", greeting, r);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TARGET, "%s", err.message);
    close(client);
    close(server);
    client = server = -1;
}

Test(qmp, not_a_qmp_server)
{
    not_qmp("SSH-2.0-OpenSSH_9.2\r\n");
    not_qmp("QEMU 7.2.22 monitor - type 'help' for more information\r\n");
    not_qmp("[]\r\n");
    not_qmp("{}\r\n");
    not_qmp("{\"QMP\": 5}\r\n");
    not_qmp("{\"return\": {}}\r\n");
    not_qmp("{\"event\": \"STOP\"}\r\n");
    not_qmp("{\"QMP\": {}}}\r\n");
    not_qmp("{\"QMP\": {}, \"QMP\": {}}\r\n");
    not_qmp("\xff\xfe\r\n");
}

Test(qmp, server_that_closes)
{
    open_pair();
    close(server);
    server = -1;
    cr_assert_eq(qmp_attach(&q, client, LONG_MS, &err), -EPIPE);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TARGET);
}

Test(qmp, server_that_closes_in_the_middle)
{
    connected();
    say("{\"return\": {\"status\": \"runn");
    close(server);
    server = -1;
    cr_assert_eq(command(LONG_MS, NULL), -EPIPE);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TARGET);
    cr_assert_eq(command(LONG_MS, NULL), -EPIPE, "a lost connection stays lost");
}

static void say_slowly(void)
{
    char line[256];
    int n = snprintf(line, sizeof(line),
                     "{\"return\": {\"x\": \"}\\r\\n{\"}, \"id\": \"vmsnap-%d-2\"}\r\n",
                     (int)getppid());
    for (int i = 0; i < n; i++) {
        write_all(line + i, 1);
        usleep(500);
    }
    pause();
}

Test(qmp, reply_in_pieces)
{
    connected();
    start_child(say_slowly);
    json_t *result = NULL;
    cr_assert_eq(command(LONG_MS, &result), 0, "%s", err.message);
    cr_assert_str_eq(json_string_value(json_object_get(result, "x")), "}\r\n{");
    json_decref(result);
}

Test(qmp, pretty_replies)
{
    connected();
    say("{\r\n    \"return\": {\r\n        \"a\": [\r\n            {\r\n            }\r\n        "
        "]\r\n"
        "    },\r\n    \"id\": \"vmsnap-%d-2\"\r\n}\r\n",
        (int)getpid());
    say_reply(3, "{}");
    json_t *result = NULL;
    cr_assert_eq(command(LONG_MS, &result), 0, "%s", err.message);
    cr_assert_eq(json_array_size(json_object_get(result, "a")), 1);
    json_decref(result);
    cr_assert_eq(command(LONG_MS, NULL), 0, "%s", err.message);
}

Test(qmp, events_between)
{
    connected();
    say("{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 12, \"microseconds\": 34}}\r\n");
    say("\r\n");
    say("{\"event\": \"OTHER\", \"timestamp\": {\"seconds\": -1, \"microseconds\": -1}, "
        "\"data\": {\"a\": 1}}\r\n");
    say_reply(2, "{}");
    say("{\"event\": \"RESUME\", \"timestamp\": \"later\"}\r\n");
    cr_assert_eq(command(LONG_MS, NULL), 0, "%s", err.message);
    struct qmp_event ev;
    cr_assert_eq(qmp_wait_event(q, "RESUME", LONG_MS, &ev, &err), 0);
    cr_assert_eq(ev.time_us, -1);
    qmp_event_clear(&ev);
    cr_assert_eq(qmp_wait_event(q, "STOP", 0, &ev, &err), 0);
    cr_assert_str_eq(ev.name, "STOP");
    cr_assert_eq(ev.time_us, 12000034);
    qmp_event_clear(&ev);
    cr_assert_eq(qmp_wait_event(q, "OTHER", 0, &ev, &err), 0);
    cr_assert_eq(ev.time_us, -1);
    cr_assert_eq(json_integer_value(json_object_get(ev.data, "a")), 1);
    qmp_event_clear(&ev);
    cr_assert_eq(qmp_wait_event(q, "STOP", SHORT_MS, &ev, &err), -ETIMEDOUT);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TIMEOUT);
}

Test(qmp, oldest_events_make_room)
{
    connected();
    char *events = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&events, &len);
    for (int i = 0; i < 300; i++)
        fprintf(f, "{\"event\": \"E%d\", \"data\": {\"n\": %d}}\r\n", i, i);
    fclose(f);
    write_all(events, len);
    free(events);
    say_reply(2, "{}");
    cr_assert_eq(command(LONG_MS, NULL), 0, "%s", err.message);
    struct qmp_event ev;
    cr_assert_eq(qmp_wait_event(q, "E43", SHORT_MS, &ev, &err), -ETIMEDOUT);
    for (int i = 300 - 256; i < 300; i++) {
        char name[16];
        snprintf(name, sizeof(name), "E%d", i);
        cr_assert_eq(qmp_wait_event(q, name, 0, &ev, &err), 0, "%s", name);
        cr_assert_eq(json_integer_value(json_object_get(ev.data, "n")), i);
        qmp_event_clear(&ev);
    }
}

Test(qmp, replies_of_others_are_skipped)
{
    connected();
    say("{\"return\": {\"whose\": \"theirs\"}, \"id\": \"libvirt-7\"}\r\n");
    say("{\"error\": {\"class\": \"GenericError\", \"desc\": \"theirs\"}, \"id\": "
        "\"libvirt-8\"}\r\n");
    say_reply(2, "{\"whose\": \"ours\"}");
    json_t *result = NULL;
    cr_assert_eq(command(LONG_MS, &result), 0, "%s", err.message);
    cr_assert_str_eq(json_string_value(json_object_get(result, "whose")), "ours");
    json_decref(result);
}

Test(qmp, late_reply_is_skipped)
{
    connected();
    cr_assert_eq(command(SHORT_MS, NULL), -ETIMEDOUT);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TIMEOUT);
    say_reply(2, "{\"n\": 2}");
    say_reply(3, "{\"n\": 3}");
    json_t *result = NULL;
    cr_assert_eq(command(LONG_MS, &result), 0, "%s", err.message);
    cr_assert_eq(json_integer_value(json_object_get(result, "n")), 3);
    json_decref(result);
}

Test(qmp, error_reply_keeps_the_connection)
{
    connected();
    say("{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no such thing\"}, "
        "\"id\": \"vmsnap-%d-2\"}\r\n",
        (int)getpid());
    say_reply(3, "{}");
    cr_assert_eq(command(LONG_MS, NULL), -EPROTO);
    cr_assert(qmp_failed_with(q, "CommandNotFound"));
    cr_assert(strstr(err.message, "query-status") && strstr(err.message, "no such thing"));
    cr_assert_eq(command(LONG_MS, NULL), 0, "%s", err.message);
    cr_assert_not(qmp_failed_with(q, "CommandNotFound"));
}

/* Hostile answers to command 2. Each must be an error, at once, and end the connection. */
static void refused_bytes(const char *bytes, size_t len)
{
    connected();
    write_all(bytes, len);
    uint64_t from = clock_monotonic_ns();
    json_t *result = NULL;
    int r = command(LONG_MS, &result);
    cr_assert_eq(r, -EPROTO, "%s: %d", bytes, r);
    cr_assert_null(result);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TARGET);
    cr_assert_lt(clock_monotonic_ns() - from, 1000000000u);
    cr_assert_eq(command(LONG_MS, NULL), -EPIPE);
    qmp_close(q);
    q = NULL;
    close(server);
    client = server = -1;
}

static void refused(const char *line)
{
    refused_bytes(line, strlen(line));
}

Test(qmp, hostile_replies)
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

Test(qmp, error_of_wrong_shape)
{
    connected();
    say("{\"error\": 5, \"id\": \"vmsnap-%d-2\"}\r\n", (int)getpid());
    cr_assert_eq(command(LONG_MS, NULL), -EPROTO);
    say("{\"error\": {\"class\": [], \"desc\": {}}, \"id\": \"vmsnap-%d-3\"}\r\n", (int)getpid());
    cr_assert_eq(command(LONG_MS, NULL), -EPROTO);
}

Test(qmp, deep_nesting)
{
    connected();
    char deep[40000];
    memset(deep, '[', sizeof(deep));
    memcpy(deep, "{\"return\": ", 11);
    memcpy(deep + sizeof(deep) - 2, "\r\n", 2);
    write_all(deep, sizeof(deep));
    cr_assert_eq(command(LONG_MS, NULL), -EPROTO);
}

static void say_as(void)
{
    static char a[65536];
    memset(a, 'a', sizeof(a));
    write_all(a, sizeof(a));
}

static void say_open_braces(void)
{
    write_all("{\n", 2);
}

static void say_unending_array(void)
{
    static bool begun;
    if (!begun)
        write_all("{\"a\":[\n", 7);
    begun = true;
    write_all("{},\n{},\n{},\n{},\n{},\n{},\n", 24);
}

static void say_events(void)
{
    write_all("{\"event\": \"X\"}\r\n", 16);
}

static void say_blank_lines(void)
{
    write_all("\r\n\r\n\r\n\r\n", 8);
}

/* A stream that never ends in a reply: an error within the deadline, or when it is too long. */
static void endless(void (*say_it)(void), int expected)
{
    connected();
    start_child(say_it);
    uint64_t from = clock_monotonic_ns();
    int r = command(1000, NULL);
    cr_assert_eq(r, expected, "%d %s", r, err.message);
    cr_assert_lt(clock_monotonic_ns() - from, 4000000000u);
}

Test(qmp, endless_without_newline)
{
    endless(say_as, -EPROTO);
    cr_assert(strstr(err.message, "longer than 4 MiB"), "%s", err.message);
}

Test(qmp, endless_open_braces)
{
    endless(say_open_braces, -EPROTO);
}

Test(qmp, endless_array)
{
    endless(say_unending_array, -ETIMEDOUT);
}

Test(qmp, endless_events)
{
    endless(say_events, -ETIMEDOUT);
}

Test(qmp, endless_blank_lines)
{
    endless(say_blank_lines, -ETIMEDOUT);
}

Test(qmp, peer_that_never_reads)
{
    connected();
    char *huge = malloc(8u << 20);
    memset(huge, 'x', (8u << 20) - 1);
    huge[(8u << 20) - 1] = '\0';
    json_t *args = json_pack("{s:s}", "line", huge);
    free(huge);
    uint64_t from = clock_monotonic_ns();
    cr_assert_eq(qmp_command(q, "x", args, -1, SHORT_MS, NULL, &err), -ETIMEDOUT);
    cr_assert_lt(clock_monotonic_ns() - from, 3000000000u);
}

Test(qmp, descriptor_travels_with_its_command)
{
    connected();
    char sent[4096];
    cr_assert(recv(server, sent, sizeof(sent), 0) > 0);
    say_reply(2, "{}");
    int pipe_fds[2];
    cr_assert_eq(pipe(pipe_fds), 0);
    cr_assert_eq(qmp_command(q, "getfd", json_pack("{s:s}", "fdname", "x"), pipe_fds[1], LONG_MS,
                             NULL, &err),
                 0);
    char control[CMSG_SPACE(sizeof(int))];
    struct iovec iov = {.iov_base = sent, .iov_len = sizeof(sent)};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control,
                         .msg_controllen = sizeof(control)};
    cr_assert(recvmsg(server, &msg, 0) > 0);
    int got;
    cr_assert(CMSG_FIRSTHDR(&msg));
    memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(got));
    cr_assert_eq(write(got, "!", 1), 1);
    cr_assert_eq(read(pipe_fds[0], sent, 1), 1);
}

/* The dead process has left half a command and an unread reply, cut in its middle. */
Test(qmp, take_over)
{
    open_pair();
    cr_assert_eq(send(client, "{\"execute\": \"sto", 16, 0), 16);
    say("atus\": \"paused\"}, \"id\": \"vmsnap-1-8\"}\r\n");
    say("{\"event\": \"STOP\"}\r\n");
    say("{\"return\": {}, \"id\": \"vmsnap-1-9\"}\r\n");
    say("{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\r\n");
    say_reply(1, "{\"status\": \"paused\"}");
    cr_assert_eq(qmp_take_over(&q, client, LONG_MS, &err), 0);
    json_t *result = NULL;
    cr_assert_eq(command(LONG_MS, &result), 0, "%s", err.message);
    cr_assert_str_eq(json_string_value(json_object_get(result, "status")), "paused");
    json_decref(result);
    unsigned char sent[256];
    ssize_t n = recv(server, sent, sizeof(sent), 0);
    cr_assert(n > 17 && sent[16] == 0xff && sent[17] == '{');
}

Test(qmp, monitor_command_must_answer_with_text)
{
    connected();
    say_reply(2, "\"a\\r\\nb\"");
    char *text = NULL;
    cr_assert_eq(qmp_hmp(q, "info x", LONG_MS, &text, &err), 0);
    cr_assert_str_eq(text, "a\r\nb");
    free(text);
    say_reply(3, "{}");
    cr_assert_eq(qmp_hmp(q, "info x", LONG_MS, &text, &err), -EPROTO);
}

Test(qmp, peer_process)
{
    connected();
    pid_t pid = 0;
    cr_assert_eq(qmp_peer_pid(qmp_fd(q), &pid), 0);
    cr_assert_eq(pid, getpid());
    cr_assert_eq(qmp_fd(q), client);
}

Test(qmp, connect_errors)
{
    char dir[] = "/tmp/vmsnap-test-XXXXXX", path[64], far[256];
    cr_assert(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/qmp", dir);
    cr_assert_eq(qmp_connect(&q, path, LONG_MS, &err), -ENOENT);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TARGET);
    cr_assert(strstr(err.message, path) && err.hint[0]);

    memset(far, 'a', sizeof(far) - 1);
    far[sizeof(far) - 1] = '\0';
    cr_assert_eq(qmp_connect(&q, far, LONG_MS, &err), -ENAMETOOLONG);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TARGET);

    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    strcpy(addr.sun_path, path);
    server = socket(AF_UNIX, SOCK_STREAM, 0);
    cr_assert_eq(bind(server, (struct sockaddr *)&addr, sizeof(addr)), 0);
    cr_assert_eq(qmp_connect(&q, path, LONG_MS, &err), -ECONNREFUSED);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TARGET);

    /* Nobody accepts: the first waits for a greeting, the next ones for room in the backlog. */
    cr_assert_eq(listen(server, 0), 0);
    int waiting = socket(AF_UNIX, SOCK_STREAM, 0);
    cr_assert_eq(connect(waiting, (struct sockaddr *)&addr, sizeof(addr)), 0);
    cr_assert_eq(qmp_connect(&q, path, SHORT_MS, &err), -ETIMEDOUT);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TIMEOUT);
    unlink(path);
    rmdir(dir);
}
