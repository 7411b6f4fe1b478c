/*
 * A QMP client and a server that does not greet: one that goes by Firecracker's name is asked by
 * white space whether it is an HTTP server; nobody else is.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "tests/unit/qmp_server.h"

#define ASKED "\r\n\r\n"

TestSuite(qmp_silent, .fini = server_tidy, .timeout = 20);

static const char *answer;

/* Says `answer` only once it was asked something. */
static void answer_when_asked(void)
{
    char asked[16];
    ssize_t n = recv(server_fd, asked, sizeof(asked), 0);
    if (n == (ssize_t)strlen(ASKED) && memcmp(asked, ASKED, strlen(ASKED)) == 0)
        server_write(answer, strlen(answer));
    pause();
}

static void start_silent(const char *name, const char *says)
{
    prctl(PR_SET_NAME, name); /* the socket is this process's */
    answer = says;
    server_open();
    server_fork(answer_when_asked);
}

Test(qmp_silent, http_server_is_found_out)
{
    start_silent("firecracker-vm", "HTTP/1.1 400 \r\nServer: Firecracker API\r\n\r\n");
    uint64_t from = clock_monotonic_ns();
    cr_assert_eq(qmp_attach_dialled(&q, client_fd, LONG_MS, &err), -EPROTO);
    cr_assert_lt(clock_monotonic_ns() - from, 3000000000u);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TARGET);
    cr_assert(strstr(err.message, "HTTP") && strstr(err.hint, "--api"), "%s", err.hint);
}

/* One that was merely busy has lost nothing by that. */
Test(qmp_silent, late_greeting_is_taken)
{
    char late[512];
    snprintf(late, sizeof(late), GREETING "{\"return\": {}, \"id\": \"vmsnap-%d-1\"}\r\n",
             (int)getpid());
    start_silent("firecracker", late);
    cr_assert_eq(qmp_attach_dialled(&q, client_fd, LONG_MS, &err), 0, "%s", err.message);
}

/* A serial port, say: its guest would read it. */
Test(qmp_silent, nobody_else_is_asked)
{
    prctl(PR_SET_NAME, "qemu-system-x86");
    server_open();
    cr_assert_eq(qmp_attach_dialled(&q, client_fd, 1500, &err), -ETIMEDOUT);
    char sent[16];
    cr_assert_eq(recv(server_fd, sent, sizeof(sent), MSG_DONTWAIT), -1);
    cr_assert(strstr(err.hint, "--api"), "%s", err.hint);
}

/* Who connects to us is asked nothing. */
Test(qmp_silent, accepted_connection_is_not_asked)
{
    server_open();
    cr_assert_eq(qmp_attach(&q, client_fd, 1500, &err), -ETIMEDOUT);
    char sent[16];
    cr_assert_eq(recv(server_fd, sent, sizeof(sent), MSG_DONTWAIT), -1);
}
