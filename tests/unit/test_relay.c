/*
 * What a VMM writes to stderr is passed on; and nobody who has stopped reading keeps a server from
 * ending. A plain program: it changes its stderr.
 */
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "restore/launch/relay.h"
#include "tests/unit/plain_check.h"

#define LIMIT_S 10

static void is_passed_on(int write_fd, int read_fd)
{
    char got[8] = "";
    CHECK(write(write_fd, "a word", 6) == 6);
    CHECK(read(read_fd, got, 6) == 6 && memcmp(got, "a word", 6) == 0);
}

int main(void)
{
    int ends[2], fd = -1, before = dup(STDERR_FILENO);
    char full[4096] = "";
    struct relay r;
    signal(SIGPIPE, SIG_IGN);
    CHECK(pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0);
    int flags = fcntl(ends[0], F_GETFL);
    CHECK(fcntl(ends[0], F_SETFL, flags & ~O_NONBLOCK) == 0);
    CHECK(dup2(ends[1], STDERR_FILENO) == STDERR_FILENO);
    CHECK(relay_start(&r, &fd) == 0);
    is_passed_on(fd, ends[0]);
    while (write(ends[1], full, sizeof(full)) > 0)
        ;
    flags = fcntl(ends[1], F_GETFL);
    CHECK(fcntl(ends[1], F_SETFL, flags & ~O_NONBLOCK) == 0); /* as stderr is */
    CHECK(write(fd, full, sizeof(full)) == sizeof(full));
    usleep(100000);
    alarm(LIMIT_S);
    relay_stop(&r);
    alarm(0);
    close(fd);
    dup2(before, STDERR_FILENO);
    return check_result();
}
