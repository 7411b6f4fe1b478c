#include "restore/listen/who.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "restore/launch/pidfile.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif

#define SLACK_NS 100000000ull /* of clocks that are read one after the other */

/* Before Linux 6.5: who has that number now must not have started after the connection. */
static bool is_old_enough(const struct target *t, uint64_t since_ns)
{
    uint64_t started_ns = pidfile_process_started_ns(t->pid);
    uint64_t connected_ns = clock_realtime_ns() - clock_monotonic_ns() + since_ns;
    return started_ns > 0 && started_ns <= connected_ns + SLACK_NS && target_alive(t);
}

/* Whether `t`, opened by the number, is who connected: a process that has not ended still has its
 * number to itself. */
static bool is_same(int connection, uint64_t since_ns, const struct target *t)
{
    int fd = -1;
    socklen_t len = sizeof(fd);
    if (getsockopt(connection, SOL_SOCKET, SO_PEERPIDFD, &fd, &len))
        return errno == ENOPROTOOPT && is_old_enough(t, since_ns);
    CLEANUP_FD int peer = fd;
    struct pollfd end = {.fd = peer, .events = POLLIN};
    return poll(&end, 1, 0) == 0;
}

int who_connected(int connection, uint64_t since_ns, struct target *t, struct error *e)
{
    struct ucred who;
    socklen_t len = sizeof(who);
    if (getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &who, &len))
        return error_set(e, VMSNAP_EXIT_TARGET, errno, "can't see who has connected");
    if (who.pid <= 0) {
        error_set(e, VMSNAP_EXIT_TARGET, ESRCH,
                  "who has connected lies in a pid namespace that can't be seen from here");
        error_hint(e, "run vmsnap in the host's pid namespace, or in the VMM's");
        return -ESRCH;
    }
    int rc = target_open(t, who.pid, e);
    if (rc)
        return rc;
    return is_same(connection, since_ns, t)
               ? 0
               : error_set(e, VMSNAP_EXIT_TARGET, ESRCH, "who has connected has ended");
}
