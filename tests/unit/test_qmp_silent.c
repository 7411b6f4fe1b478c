/*
 * A QMP client and a server that does not greet: whether it is an HTTP server is found out by white
 * space, which harms no QMP server.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/qmp.h"

#define GREETING "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n"
#define LONG_MS 5000
#define ASKED "\r\n\r\n"

static struct qmp *q;
static int server = -1, client = -1;
static pid_t child;
static struct error err;

static void open_pair(void)
{
    int fds[2];
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    client = fds[0];
    server = fds[1];
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
    if (server >= 0)
        close(server);
}

TestSuite(qmp_silent, .fini = tidy, .timeout = 20);

/* A server that says `answer` only once it was asked something, in a child. */
static void start_silent(const char *answer)
{
    open_pair();
    child = fork();
    cr_assert(child >= 0);
    if (child == 0) {
        char asked[16];
        close(client);
        ssize_t n = recv(server, asked, sizeof(asked), 0);
        if (n == (ssize_t)strlen(ASKED) && memcmp(asked, ASKED, strlen(ASKED)) == 0)
            (void)!send(server, answer, strlen(answer), MSG_NOSIGNAL);
        pause();
    }
    close(server);
    server = -1;
}

Test(qmp_silent, http_server_is_found_out)
{
    start_silent("HTTP/1.1 400 \r\nServer: Firecracker API\r\n\r\n");
    uint64_t from = clock_monotonic_ns();
    cr_assert_eq(qmp_attach_dialled(&q, client, LONG_MS, &err), -EPROTO);
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
    start_silent(late);
    cr_assert_eq(qmp_attach_dialled(&q, client, LONG_MS, &err), 0, "%s", err.message);
}

/* Who connects to us is asked nothing. */
Test(qmp_silent, accepted_connection_is_not_asked)
{
    open_pair();
    cr_assert_eq(qmp_attach(&q, client, 1500, &err), -ETIMEDOUT);
    char sent[16];
    cr_assert_eq(recv(server, sent, sizeof(sent), MSG_DONTWAIT), -1);
}
