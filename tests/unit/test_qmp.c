/* The QMP client: greeting, commands, events, descriptors, connections. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "tests/unit/qmp_server.h"

TestSuite(qmp, .fini = server_tidy, .timeout = 20);

Test(qmp, greets_and_negotiates)
{
    server_greets();
    char sent[256] = "";
    cr_assert(recv(server_fd, sent, sizeof(sent) - 1, MSG_DONTWAIT) > 0);
    cr_assert(strstr(sent, "\"execute\":\"qmp_capabilities\""));
    cr_assert_eq(sent[strlen(sent) - 1], '\n');
}

Test(qmp, no_greeting_is_a_busy_socket)
{
    server_open();
    uint64_t from = clock_monotonic_ns();
    cr_assert_eq(qmp_attach(&q, client_fd, SHORT_MS, &err), -ETIMEDOUT);
    cr_assert_lt(clock_monotonic_ns() - from, 2000000000u);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TIMEOUT);
    cr_assert(strstr(err.hint, "second -qmp"), "%s", err.hint);
}

static void not_qmp(const char *greeting)
{
    server_open();
    server_say("%s", greeting);
    int r = qmp_attach(&q, client_fd, LONG_MS, &err);
    cr_assert(r < 0 && r != -ETIMEDOUT, "%s: %d", greeting, r);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TARGET, "%s", err.message);
    close(client_fd);
    close(server_fd);
    client_fd = server_fd = -1;
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
    server_open();
    close(server_fd);
    server_fd = -1;
    cr_assert_eq(qmp_attach(&q, client_fd, LONG_MS, &err), -EPIPE);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TARGET);
}

Test(qmp, server_that_closes_in_the_middle)
{
    server_greets();
    server_say("{\"return\": {\"status\": \"runn");
    close(server_fd);
    server_fd = -1;
    cr_assert_eq(ask(LONG_MS, NULL), -EPIPE);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TARGET);
    cr_assert_eq(ask(LONG_MS, NULL), -EPIPE, "a lost connection stays lost");
}

static void say_slowly(void)
{
    char line[256];
    int n = snprintf(line, sizeof(line),
                     "{\"return\": {\"x\": \"}\\r\\n{\"}, \"id\": \"vmsnap-%d-2\"}\r\n",
                     (int)getppid());
    for (int i = 0; i < n; i++) {
        server_write(line + i, 1);
        usleep(500);
    }
    pause();
}

Test(qmp, reply_in_pieces)
{
    server_greets();
    server_fork(say_slowly);
    json_t *result = NULL;
    cr_assert_eq(ask(LONG_MS, &result), 0, "%s", err.message);
    cr_assert_str_eq(json_string_value(json_object_get(result, "x")), "}\r\n{");
    json_decref(result);
}

Test(qmp, pretty_replies)
{
    server_greets();
    server_say(
        "{\r\n    \"return\": {\r\n        \"a\": [\r\n            {\r\n            }\r\n        "
        "]\r\n"
        "    },\r\n    \"id\": \"vmsnap-%d-2\"\r\n}\r\n",
        (int)getpid());
    server_say_reply(3, "{}");
    json_t *result = NULL;
    cr_assert_eq(ask(LONG_MS, &result), 0, "%s", err.message);
    cr_assert_eq(json_array_size(json_object_get(result, "a")), 1);
    json_decref(result);
    cr_assert_eq(ask(LONG_MS, NULL), 0, "%s", err.message);
}

Test(qmp, events_between)
{
    server_greets();
    server_say("{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 12, \"microseconds\": 34}}\r\n");
    server_say("\r\n");
    server_say("{\"event\": \"OTHER\", \"timestamp\": {\"seconds\": -1, \"microseconds\": -1}, "
               "\"data\": {\"a\": 1}}\r\n");
    server_say_reply(2, "{}");
    server_say("{\"event\": \"RESUME\", \"timestamp\": \"later\"}\r\n");
    cr_assert_eq(ask(LONG_MS, NULL), 0, "%s", err.message);
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
    server_greets();
    char *events = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&events, &len);
    for (int i = 0; i < 300; i++)
        fprintf(f, "{\"event\": \"E%d\", \"data\": {\"n\": %d}}\r\n", i, i);
    fclose(f);
    server_write(events, len);
    free(events);
    server_say_reply(2, "{}");
    cr_assert_eq(ask(LONG_MS, NULL), 0, "%s", err.message);
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
    server_greets();
    server_say("{\"return\": {\"whose\": \"theirs\"}, \"id\": \"libvirt-7\"}\r\n");
    server_say("{\"error\": {\"class\": \"GenericError\", \"desc\": \"theirs\"}, \"id\": "
               "\"libvirt-8\"}\r\n");
    server_say_reply(2, "{\"whose\": \"ours\"}");
    json_t *result = NULL;
    cr_assert_eq(ask(LONG_MS, &result), 0, "%s", err.message);
    cr_assert_str_eq(json_string_value(json_object_get(result, "whose")), "ours");
    json_decref(result);
}

Test(qmp, late_reply_is_skipped)
{
    server_greets();
    cr_assert_eq(ask(SHORT_MS, NULL), -ETIMEDOUT);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TIMEOUT);
    server_say_reply(2, "{\"n\": 2}");
    server_say_reply(3, "{\"n\": 3}");
    json_t *result = NULL;
    cr_assert_eq(ask(LONG_MS, &result), 0, "%s", err.message);
    cr_assert_eq(json_integer_value(json_object_get(result, "n")), 3);
    json_decref(result);
}

Test(qmp, error_reply_keeps_the_connection)
{
    server_greets();
    server_say("{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no such thing\"}, "
               "\"id\": \"vmsnap-%d-2\"}\r\n",
               (int)getpid());
    server_say_reply(3, "{}");
    cr_assert_eq(ask(LONG_MS, NULL), -EPROTO);
    cr_assert(qmp_failed_with(q, "CommandNotFound"));
    cr_assert(strstr(err.message, "query-status") && strstr(err.message, "no such thing"));
    cr_assert_eq(ask(LONG_MS, NULL), 0, "%s", err.message);
    cr_assert_not(qmp_failed_with(q, "CommandNotFound"));
}

Test(qmp, descriptor_travels_with_its_command)
{
    server_greets();
    char sent[4096];
    cr_assert(recv(server_fd, sent, sizeof(sent), 0) > 0);
    server_say_reply(2, "{}");
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
    cr_assert(recvmsg(server_fd, &msg, 0) > 0);
    int got;
    cr_assert(CMSG_FIRSTHDR(&msg));
    memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(got));
    cr_assert_eq(write(got, "!", 1), 1);
    cr_assert_eq(read(pipe_fds[0], sent, 1), 1);
}

/* The dead process has left half a command and an unread reply, cut in its middle. */
Test(qmp, take_over)
{
    server_open();
    cr_assert_eq(send(client_fd, "{\"execute\": \"sto", 16, 0), 16);
    server_say("atus\": \"paused\"}, \"id\": \"vmsnap-1-8\"}\r\n");
    server_say("{\"event\": \"STOP\"}\r\n");
    server_say("{\"return\": {}, \"id\": \"vmsnap-1-9\"}\r\n");
    server_say("{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\r\n");
    server_say_reply(1, "{\"status\": \"paused\"}");
    cr_assert_eq(qmp_take_over(&q, client_fd, LONG_MS, &err), 0);
    json_t *result = NULL;
    cr_assert_eq(ask(LONG_MS, &result), 0, "%s", err.message);
    cr_assert_str_eq(json_string_value(json_object_get(result, "status")), "paused");
    json_decref(result);
    unsigned char sent[256];
    ssize_t n = recv(server_fd, sent, sizeof(sent), 0);
    cr_assert(n > 17 && sent[16] == 0xff && sent[17] == '{');
}

Test(qmp, monitor_command_must_answer_with_text)
{
    server_greets();
    server_say_reply(2, "\"a\\r\\nb\"");
    char *text = NULL;
    cr_assert_eq(qmp_hmp(q, "info x", LONG_MS, &text, &err), 0);
    cr_assert_str_eq(text, "a\r\nb");
    free(text);
    server_say_reply(3, "{}");
    cr_assert_eq(qmp_hmp(q, "info x", LONG_MS, &text, &err), -EPROTO);
}

Test(qmp, peer_process)
{
    server_greets();
    pid_t pid = 0;
    cr_assert_eq(qmp_peer_pid(qmp_fd(q), &pid), 0);
    cr_assert_eq(pid, getpid());
    cr_assert_eq(qmp_fd(q), client_fd);
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
    server_fd = socket(AF_UNIX, SOCK_STREAM, 0);
    cr_assert_eq(bind(server_fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    cr_assert_eq(qmp_connect(&q, path, LONG_MS, &err), -ECONNREFUSED);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TARGET);

    /* Nobody accepts: the first waits for a greeting, the next ones for room in the backlog. */
    cr_assert_eq(listen(server_fd, 0), 0);
    int waiting = socket(AF_UNIX, SOCK_STREAM, 0);
    cr_assert_eq(connect(waiting, (struct sockaddr *)&addr, sizeof(addr)), 0);
    cr_assert_eq(qmp_connect(&q, path, SHORT_MS, &err), -ETIMEDOUT);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TIMEOUT);
    unlink(path);
    rmdir(dir);
}
