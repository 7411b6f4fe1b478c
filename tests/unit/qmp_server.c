#include "tests/unit/qmp_server.h"

#include <criterion/criterion.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

struct qmp *q;
int server_fd = -1, client_fd = -1;
static pid_t child;
struct error err;

void server_write(const char *bytes, size_t len)
{
    while (len > 0) {
        ssize_t n = send(server_fd, bytes, len, MSG_NOSIGNAL);
        if (n <= 0)
            _exit(0); /* only a child gets here: the client has had enough */
        bytes += n;
        len -= (size_t)n;
    }
}

/* Puts a line of the server's into the socket. "%d" is for our pid in an id. */
void server_say(const char *fmt, ...)
{
    char line[8192];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    cr_assert(n > 0 && (size_t)n < sizeof(line));
    server_write(line, (size_t)n);
}

void server_say_reply(int id, const char *value)
{
    server_say("{\"return\": %s, \"id\": \"vmsnap-%d-%d\"}\r\n", value, (int)getpid(), id);
}

void server_open(void)
{
    int fds[2];
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    client_fd = fds[0];
    server_fd = fds[1];
}

void server_greets(void)
{
    server_open();
    server_say(GREETING);
    server_say_reply(1, "{}");
    cr_assert_eq(qmp_attach(&q, client_fd, LONG_MS, &err), 0, "%s", err.message);
}

void server_tidy(void)
{
    if (child > 0) {
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    qmp_close(q);
    if (!q && client_fd >= 0)
        close(client_fd);
    close(server_fd);
}

/* A child that runs `say_it` for ever. */
void server_fork(void (*say_it)(void))
{
    child = fork();
    cr_assert(child >= 0);
    if (child == 0) {
        close(client_fd);
        for (;;)
            say_it();
    }
    close(server_fd);
    server_fd = -1;
}

int ask(int timeout_ms, json_t **result)
{
    return qmp_command(q, "query-status", NULL, -1, timeout_ms, result, &err);
}
