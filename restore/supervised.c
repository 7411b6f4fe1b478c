#include "restore/supervised.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/log.h"
#include "restore/launch/vmm.h"

/* A process has one supervisor at most. */
static int line_fd = -1;
static pid_t supervisor_pid;
static atomic_uint *times_asked; /* shared by both */

void supervised_begin(int line, pid_t supervisor)
{
    line_fd = line;
    supervisor_pid = supervisor;
}

/* False: nobody hears it. */
static bool tell(const struct supervised_message *m, const int *fds, size_t n_fds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control = {0};
    struct iovec data = {.iov_base = (void *)m, .iov_len = sizeof(*m)};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
    if (line_fd < 0)
        return false;
    if (n_fds > 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(head), fds, n_fds * sizeof(int));
    }
    /* A dead supervisor shows as POLLHUP too. */
    return sendmsg(line_fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)sizeof(*m);
}

void supervised_tell_lives(const struct vmm *v, int command_fd, bool resumes, bool on_terminal)
{
    const struct supervised_message m = {.kind = SUPERVISED_LIVES,
                                         .vmm = atomic_load(&v->pid),
                                         .child = atomic_load(&v->child),
                                         .resumes = resumes,
                                         .on_terminal = on_terminal};
    tell(&m, (const int[]){v->target.pidfd, command_fd}, 2);
}

void supervised_tell_runs(void)
{
    tell(&(struct supervised_message){.kind = SUPERVISED_RUNS}, NULL, 0);
}

void supervised_tell_told(void)
{
    tell(&(struct supervised_message){.kind = SUPERVISED_TOLD}, NULL, 0);
}

void supervised_tell_serves(uint64_t n_settled)
{
    tell(&(struct supervised_message){.kind = SUPERVISED_SERVES, .n_settled = n_settled}, NULL, 0);
}

void supervised_tell_clock(const struct clock_outcome *outcome)
{
    tell(&(struct supervised_message){.kind = SUPERVISED_CLOCK, .clock = *outcome}, NULL, 0);
}

void supervised_tell_learned(void)
{
    tell(&(struct supervised_message){.kind = SUPERVISED_LEARNED}, NULL, 0);
}

void supervised_tell_complete(void)
{
    tell(&(struct supervised_message){.kind = SUPERVISED_COMPLETE}, NULL, 0);
}

bool supervised_tell_unserved(void)
{
    return tell(&(struct supervised_message){.kind = SUPERVISED_UNSERVED}, NULL, 0);
}

int supervised_line(void)
{
    return line_fd;
}

void supervised_note_loss(void)
{
    log_warn("process %d, which would start another server if this one (%d) died, has ended; this "
             "one goes on",
             (int)supervisor_pid, (int)getpid());
    close(line_fd);
    line_fd = -1;
    supervisor_pid = 0;
}

int supervised_share(void)
{
    void *map =
        mmap(NULL, sizeof(*times_asked), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return -errno;
    times_asked = map;
    return 0;
}

void supervised_note_asked(void)
{
    atomic_fetch_add(times_asked, 1);
}

unsigned supervised_times_asked(void)
{
    return times_asked ? atomic_load(times_asked) : 0;
}

bool supervised_passed(const struct signalfd_siginfo *info)
{
    return line_fd >= 0 && info->ssi_code == SI_QUEUE && (pid_t)info->ssi_pid == supervisor_pid;
}
