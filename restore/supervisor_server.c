/*
 * supervisor_server.c - the servers of a supervisor: what they tell, how they end, and when another
 * one follows.
 */
#include "restore/supervisor_internal.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/testhook.h"
#include "restore/launch/detach.h"
#include "restore/resume.h"
#include "restore/signals.h"
#include "restore/supervised.h"

#define MAX_FAILURES 10u
#define LONG_LIFE_NS 10000000000ull
#define FIRST_DELAY_NS 10000000ull
#define MAX_DELAY_NS 1000000000ull
#define ASK_AGAIN_NS 1000000000ull /* whether who serves the guest in our place still does */

bool supervisor_vmm_ended(const struct supervisor *s)
{
    struct pollfd p = {.fd = s->vmm_fd, .events = POLLIN};
    return s->vmm_fd >= 0 && poll(&p, 1, 0) > 0;
}

/* ---- what the server tells ---- */

static void take_descriptors(struct supervisor *s, struct msghdr *message)
{
    struct cmsghdr *head = CMSG_FIRSTHDR(message);
    int fds[2] = {-1, -1};
    if (head && head->cmsg_type == SCM_RIGHTS && head->cmsg_len == CMSG_LEN(sizeof(fds)))
        memcpy(fds, CMSG_DATA(head), sizeof(fds));
    s->vmm_fd = fds[0];
    s->command_fd = fds[1];
}

/* Our part in what --detach is: from here on the caller's terminal and pipes are not ours. */
static void let_go_of_caller(struct supervisor *s)
{
    detach_leave_terminal();
    s->o->detached(s->o->opaque);
}

static void take_message(struct supervisor *s, const struct supervised_message *m,
                         struct msghdr *message)
{
    switch ((enum supervised_kind)m->kind) {
    case SUPERVISED_LIVES:
        take_descriptors(s, message);
        s->vmm = m->vmm;
        s->child = m->child;
        s->resumes = m->resumes;
        s->on_terminal = m->on_terminal;
        s->lives = s->vmm_fd >= 0;
        if (s->o->detach)
            let_go_of_caller(s);
        break;
    case SUPERVISED_RUNS:
        s->runs = true;
        supervisor_close_fd(&s->command_fd);
        break;
    case SUPERVISED_TOLD:
        supervisor_close_fd(&s->word_fd);
        break;
    case SUPERVISED_SERVES:
        s->served = true;
        s->runs |= !s->is_first && !s->resumes; /* else it tells when it was let run */
        if (m->n_settled > s->n_settled) {
            s->n_settled = m->n_settled;
            s->n_failures = 0;
        }
        break;
    case SUPERVISED_CLOCK:
        s->clock = m->clock;
        break;
    case SUPERVISED_LEARNED:
        s->learned = true;
        break;
    case SUPERVISED_COMPLETE:
        s->complete = true;
        break;
    case SUPERVISED_UNSERVED:
        s->is_unserved = true;
        break;
    }
}

bool supervisor_read_line(struct supervisor *s)
{
    while (s->line >= 0) {
        struct supervised_message m = {0};
        union {
            struct cmsghdr align;
            char bytes[CMSG_SPACE(2 * sizeof(int))];
        } control;
        struct iovec data = {.iov_base = &m, .iov_len = sizeof(m)};
        struct msghdr message = {.msg_iov = &data,
                                 .msg_iovlen = 1,
                                 .msg_control = control.bytes,
                                 .msg_controllen = sizeof(control.bytes)};
        ssize_t n = recvmsg(s->line, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n == (ssize_t)sizeof(m))
            take_message(s, &m, &message);
        else if (n >= 0 || errno != EINTR)
            return n != 0;
    }
    return false;
}

/* ---- a server ---- */

/* In the child. A guest that is served must not lose its server to a Ctrl-C: the VMM gets it. */
static void become_server(struct supervisor *s, int line, pid_t supervisor)
{
    supervisor_close_fd(&s->signal_fd);
    supervisor_close_fd(&s->line);
    sigprocmask(SIG_SETMASK, &s->mask, NULL);
    supervised_begin(line, supervisor);
    prctl(PR_SET_NAME, "vmsnap-server");
}

static bool is_last_try(const struct supervisor *s)
{
    return s->n_failures + 1 >= MAX_FAILURES;
}

/* Exit codes of a successor: 0 all is in (also: nothing was left to do), 11 somebody else serves
 * the guest, 1 it could not. Why not is said by the last that tries. */
_Noreturn void supervisor_run_server(struct supervisor *s)
{
    struct error e = {0};
    struct resume_help help = {.command_fd = s->runs || !s->resumes ? -1 : s->command_fd,
                               .word_fd = s->word_fd,
                               .clock = &s->clock,
                               .learned = s->learned,
                               .on_terminal = s->on_terminal};
    if (!s->is_first)
        TESTHOOK_SUCCEED(s->n_started);
    signals_outlive();
    int rc =
        s->charge ? s->charge->serve(s->charge->opaque, &e) : resume_run(s->o, s->vmm, &help, &e);
    if (rc == 0)
        _exit(VMSNAP_EXIT_DONE);
    if (e.exit_code == VMSNAP_EXIT_BUSY)
        _exit(VMSNAP_EXIT_BUSY);
    if (is_last_try(s))
        s->o->trouble(s->o->opaque, &e);
    _exit(VMSNAP_EXIT_FAILED);
}

int supervisor_fork(struct supervisor *s)
{
    int line[2];
    pid_t self = getpid();
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, line))
        return -errno;
    pid_t pid = fork();
    if (pid == 0) {
        close(line[0]);
        become_server(s, line[1], self);
        return 1;
    }
    int err = errno;
    close(line[1]);
    if (pid < 0) {
        close(line[0]);
        return -err;
    }
    s->server = pid;
    s->is_unserved = false;
    s->line = line[0];
    s->began_ns = clock_monotonic_ns();
    return 0;
}

static void give_up(struct supervisor *s)
{
    struct error e = {0};
    s->given_up = true;
    if (s->by_hand) {
        s->end = END_GIVEN_UP;
    } else {
        supervisor_explain_failure(s, &e);
        if (s->word_fd >= 0)
            detach_tell_error(s->word_fd, &e);
        s->word_fd = -1;
        s->o->trouble(s->o->opaque, &e);
    }
}

/* The guest has no server: another one is due, after a while if it did not help the last times. */
static void note_failure(struct supervisor *s)
{
    uint64_t now = clock_monotonic_ns(), delay = 0;
    s->n_failures = now - s->began_ns >= LONG_LIFE_NS ? 1 : s->n_failures + 1;
    if (s->n_failures >= MAX_FAILURES) {
        give_up(s);
        return;
    }
    for (unsigned i = 1; i < s->n_failures && delay < MAX_DELAY_NS; i++)
        delay = delay ? delay * 2 : FIRST_DELAY_NS;
    s->next_ns = now + (delay < MAX_DELAY_NS ? delay : MAX_DELAY_NS);
}

/* There is no process for it, which says nothing of servers, and comes round: it is not counted,
 * and not given up. */
static void put_off(struct supervisor *s, int rc)
{
    if (!s->lacks_process)
        log_warn("no process for another server of process %d (%s): tried again every second; its "
                 "guest waits at memory that is not in",
                 (int)s->vmm, strerror(-rc));
    s->lacks_process = true;
    s->next_ns = clock_monotonic_ns() + MAX_DELAY_NS;
}

void supervisor_start_server(struct supervisor *s)
{
    s->is_first = false;
    s->n_started++;
    int rc = supervisor_fork(s);
    if (rc > 0)
        supervisor_run_server(s);
    if (rc < 0)
        put_off(s, rc);
    else
        s->lacks_process = false;
}

static void report_death(struct supervisor *s, int number)
{
    log_warn("server %d of process %d was ended by signal %d (%s): another one takes over",
             (int)s->server, (int)s->vmm, number, strsignal(number));
    s->o->report(s->o->opaque, "takeover",
                 json_pack("{s:i, s:i, s:i}", "vmm_pid", (int)s->vmm, "signal", number, "failures",
                           (int)s->n_failures));
}

/* ---- how one ends ---- */

/* By hand, before the takeover has come about, a signal ends all. */
static bool was_broken_off(const struct supervisor *s, int status)
{
    return s->by_hand && !s->served && s->first_signal && WTERMSIG(status) == s->first_signal;
}

static void judge_killed(struct supervisor *s, int status)
{
    s->end_status = status;
    if (!s->lives || was_broken_off(s, status)) {
        s->end = END_TOO_SOON;
    } else if (!s->complete && !supervisor_vmm_ended(s)) {
        report_death(s, WTERMSIG(status));
        note_failure(s);
    }
}

static void judge_exited(struct supervisor *s, int code)
{
    if (s->is_unserved) {
        note_failure(s);
    } else if (s->is_first && !s->charge) {
        s->end = END_SERVER;
        s->end_status = code;
    } else if (code == VMSNAP_EXIT_DONE) {
        s->complete = true;
        if (s->charge)
            s->charge->complete(s->charge->opaque);
    } else if (code == VMSNAP_EXIT_BUSY) {
        s->next_ns = clock_monotonic_ns() + ASK_AGAIN_NS;
    } else {
        note_failure(s);
    }
}

void supervisor_take_end(struct supervisor *s, int status)
{
    supervisor_read_line(s);
    supervisor_close_fd(&s->line);
    if (WIFEXITED(status))
        judge_exited(s, WEXITSTATUS(status));
    else
        judge_killed(s, status);
    s->server = 0;
}

bool supervisor_wants_server(const struct supervisor *s)
{
    return s->lives && !s->server && !s->complete && !s->given_up && !supervisor_vmm_ended(s);
}
