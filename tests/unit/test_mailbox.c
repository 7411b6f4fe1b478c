/* A handoff message that fills the mailbox and has no descriptor: who waits for one sleeps. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "restore/listen/mailbox.h"

#define WAIT_NS 500000000u

static const char begin[] =
    "[{\"base_host_virt_addr\": 65536, \"size\": 131072, \"offset\": 4096, \"more\": \"";
static const char end[] = "\"}]";

static uint64_t thread_cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void send_full(int to)
{
    char *text = malloc(PEER_MESSAGE_MAX_BYTES);
    memset(text, 'x', PEER_MESSAGE_MAX_BYTES);
    memcpy(text, begin, strlen(begin));
    memcpy(text + PEER_MESSAGE_MAX_BYTES - strlen(end), end, strlen(end));
    cr_assert_eq(send(to, text, PEER_MESSAGE_MAX_BYTES, 0), PEER_MESSAGE_MAX_BYTES);
    free(text);
}

Test(mailbox, one_that_is_full_does_not_spin)
{
    int sockets[2], fd = -1;
    struct mailbox in;
    struct peer_message m;
    struct error e = {0};
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0);
    cr_assert_eq(mailbox_open(&in, sockets[0], &e), 0);
    send_full(sockets[1]);
    cr_assert_eq(send(sockets[1], " ", 1, 0), 1); /* and more is there to be read */
    uint64_t before = thread_cpu_ns();
    int r = mailbox_take(&in, &m, &fd, -1, clock_monotonic_ns() + WAIT_NS, &e);
    uint64_t took = thread_cpu_ns() - before;
    cr_assert_eq(r, -ETIMEDOUT, "%d: %s", r, e.message);
    cr_assert_lt(took, WAIT_NS / 5, "%llu ns of CPU", (unsigned long long)took);
    mailbox_close(&in);
    close(sockets[1]);
}
