/*
 * supervisor.c - see supervisor.h.
 *
 *     vmsnap restore     the supervisor: has no thread, no buffer, no lock, and waits
 *      `- server         restore.c; if it is killed: resume.c, in a process forked from here
 *          `- VMM        comes to us when its server dies (we are a subreaper)
 *
 * It is the process that our caller knows: a shell, a unit or a container's first process sees
 * nothing of a server's death, and still gets the VMM's own exit status. As it is forked before
 * anything happens, a successor runs the same program with the same options, rights and output,
 * whatever has become of the file it was started from; and nothing that a dying server has spoilt
 * is in it.
 *
 * A server that dies before it lets its VMM live is not replaced: the keeper (keeper.c) ends that
 * VMM. After that, nothing here ever harms the VMM: what can't be served waits.
 *
 * Another server follows at once, then after 10 ms, 20 ms and so on. After MAX_FAILURES in a row
 * that got nowhere (no more memory was in when the next one looked, and none lived for
 * LONG_LIFE_NS) no other follows: the guest waits, and we say so. If somebody else serves the
 * guest (`--resume` by hand was quicker) we ask again now and then.
 *
 * Signals. Those of a terminal reach the server as well as us, those of a user perhaps only us: we
 * pass on all, and the server (signals.c) takes one that came twice for one. Under a successor,
 * which heeds none, the VMM gets them from here. Ctrl-Z: once server and VMM have stopped, we do.
 *
 * If we die the server goes on (supervised.h), without a successor. If all of ours die at once the
 * guest waits for `--resume` by hand.
 */
#include "restore/supervisor.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/progress.h"
#include "common/testhook.h"
#include "restore/launch/detach.h"
#include "restore/resume.h"
#include "restore/signals.h"
#include "restore/supervised.h"
#include "restore/supervisor_internal.h"

#define END_SLOW_S 3

/* ---- children ---- */

/* It stops only together with its VMM (signals.c), as does the job: then we belong to it. One that
 * somebody has stopped alone is told to go on: its guest would hang. */
static void follow_stop(const struct supervisor *s)
{
    if (!s->charge && (!s->lives || signals_is_stopped(s->vmm)))
        raise(SIGSTOP);
    kill(s->server, SIGCONT);
}

static void reap(struct supervisor *s)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG | WUNTRACED)) > 0) {
        if (WIFSTOPPED(status)) {
            if (pid == s->server)
                follow_stop(s);
            continue;
        }
        if (pid == s->server) {
            supervisor_take_end(s, status);
            continue;
        }
        if (pid == s->vmm)
            s->vmm_status = status;
        if (pid == s->child)
            s->child_status = status;
    }
}

/* ---- signals ---- */

/* The VMM is to end, and nobody but us can tell it; or if it has, the wrapper
 * that is waited for. */
static void end_vmm(struct supervisor *s, int number, bool again)
{
    if (s->by_hand || s->charge || !s->lives)
        return;
    if (!supervisor_vmm_ended(s))
        kill(s->vmm, again ? SIGKILL : number);
    else if (supervisor_wrapper_is_left(s))
        kill(s->child, again ? SIGKILL : number);
}

/* Asked for progress while no server is there that could tell. */
static void answer_asker(const struct supervisor *s)
{
    char text[192];
    if (s->server)
        return;
    if (s->given_up && !s->complete)
        snprintf(
            text, sizeof(text),
            "process %d is served no more from here: its guest waits, or another vmsnap serves "
            "it; 'vmsnap restore --resume %d [IMAGE]' tries it again",
            (int)s->vmm, (int)s->vmm);
    else
        snprintf(text, sizeof(text),
                 s->complete ? "all memory of process %d is in"
                             : "process %d has no server just now: another one follows",
                 (int)s->vmm);
    progress_request();
    progress_answer(text);
}

/* One that is to end us. */
static void note_signal(struct supervisor *s, int number)
{
    if (s->by_hand && s->served && !s->complete)
        log_warn("signal %d (%s) ends nothing: the guest in process %d depends on this vmsnap "
                 "until all memory is in",
                 number, strsignal(number), (int)s->vmm);
    if (s->first_signal)
        return;
    s->first_signal = number;
    if (!s->by_hand && !s->charge)
        s->slow_ns = clock_monotonic_ns() + END_SLOW_S * 1000000000ull;
}

static void pass_on(struct supervisor *s, int number)
{
    bool again = s->first_signal != 0;
    if (number != SIGUSR1)
        supervised_note_asked();
    if (number == SIGUSR1 || (s->server && s->is_first && !s->charge)) {
        if (s->server)
            sigqueue(s->server, number, (union sigval){0});
    } else {
        end_vmm(s, number, again);
        s->leaves = s->charge;
    }
    if (number == SIGUSR1)
        answer_asker(s);
    else
        note_signal(s, number);
}

/* A VMM that waits for memory may never get as far as its own end, and to somebody at a terminal it
 * seems that nothing has happened. In how many ms to look again; -1: never. */
static int watch_end(struct supervisor *s)
{
    int left_ms = s->slow_ns ? clock_ms_until(s->slow_ns) : -1;
    if (left_ms != 0)
        return left_ms;
    s->slow_ns = 0;
    if (s->lives && !supervisor_vmm_ended(s))
        log_warn("process %d has not ended %d s after signal %d (%s): it may wait for memory that "
                 "is not in; another such signal kills it",
                 (int)s->vmm, END_SLOW_S, s->first_signal, strsignal(s->first_signal));
    return -1;
}

static void take_signal(struct supervisor *s)
{
    struct signalfd_siginfo info;
    if (read(s->signal_fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
        return;
    switch (info.ssi_signo) {
    case SIGCHLD:
    case SIGTTIN:
    case SIGTTOU:
        break;
    case SIGTSTP: /* a first server stops by itself */
        if (s->lives && !s->charge && !(s->server && s->is_first) && signals_stops_too(s->vmm))
            raise(SIGSTOP);
        break;
    default:
        pass_on(s, (int)info.ssi_signo);
        break;
    }
}

/* ---- the life of a supervisor ---- */

static int take_signals(struct supervisor *s)
{
    static const int taken[] = {SIGCHLD, SIGINT,  SIGTERM, SIGHUP, SIGQUIT,
                                SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1};
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof(taken) / sizeof(taken[0]); i++)
        sigaddset(&set, taken[i]);
    s->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (s->signal_fd < 0)
        return -errno;
    sigprocmask(SIG_BLOCK, &set, &s->mask);
    return 0;
}

static int connection_of(const struct supervisor *s)
{
    return s->charge ? s->charge->connection(s->charge->opaque) : -1;
}

/* Of two waits, of which -1 has no end. */
static int sooner(int a_ms, int b_ms)
{
    return a_ms < 0 || (b_ms >= 0 && b_ms < a_ms) ? b_ms : a_ms;
}

static void supervise(struct supervisor *s)
{
    for (;;) {
        bool open = supervisor_read_line(s);
        reap(s);
        if (supervisor_is_over(s)) {
            reap(s); /* a VMM that has ended since: its status is ours */
            return;
        }
        int wait_ms = -1;
        if (supervisor_wants_server(s)) {
            wait_ms = clock_ms_until(s->next_ns);
            if (wait_ms == 0) {
                supervisor_start_server(s);
                continue;
            }
        }
        /* An ended VMM is of interest only once no server looks after it. */
        struct pollfd fds[4] = {{.fd = s->signal_fd, .events = POLLIN},
                                {.fd = open ? s->line : -1, .events = POLLIN},
                                {.fd = s->server ? -1 : s->vmm_fd, .events = POLLIN},
                                {.fd = connection_of(s), .events = POLLIN}};
        if (fds[2].fd >= 0 && supervisor_vmm_ended(s)) { /* its wrapper is left */
            fds[2].fd = -1;
            wait_ms = 50;
        }
        wait_ms = sooner(wait_ms, watch_end(s));
        wait_ms = sooner(wait_ms, supervisor_watch_given_up(s));
        poll(fds, 4, wait_ms);
        if (fds[0].revents)
            take_signal(s);
        if (fds[3].revents)
            s->charge->heard(s->charge->opaque);
    }
}

/* Makes *s and the first server. As supervisor_fork(). */
static int begin(struct supervisor *s)
{
    s->signal_fd = s->line = -1;
    s->is_first = true;
    s->vmm_status = s->child_status = -1;
    signal(SIGCHLD, SIG_DFL); /* ignored, it would keep statuses from us */
    int rc = supervised_share();
    if (rc == 0)
        rc = take_signals(s);
    if (rc == 0 && !s->by_hand && !s->charge)
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    if (rc == 0)
        rc = supervisor_fork(s);
    if (rc < 0) {
        if (s->signal_fd >= 0)
            sigprocmask(SIG_SETMASK, &s->mask, NULL);
        supervisor_close_fd(&s->signal_fd);
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0);
        log_warn("no supervisor (%s): if this process dies, the guest waits", strerror(-rc));
    }
    return rc;
}

bool supervisor_begin(const struct restore_options *o, int word_fd, int *vmm_status, int *rc,
                      struct error *e)
{
    struct supervisor s = {.o = o, .word_fd = word_fd, .vmm_fd = -1, .command_fd = -1};
    if (TESTHOOK_BROKEN("not-supervised") || begin(&s) != 0)
        return true;
    supervise(&s);
    *rc = supervisor_finish(&s, vmm_status, e);
    if (!o->detach)
        return false;
    if (*rc && s.word_fd >= 0)
        detach_tell_error(s.word_fd, e);
    _exit(*rc ? e->exit_code : VMSNAP_EXIT_DONE);
}

int supervisor_resume(const struct restore_options *o, pid_t vmm, struct error *e)
{
    struct supervisor s = {.o = o,
                           .by_hand = true,
                           .word_fd = -1,
                           .command_fd = -1,
                           .lives = true,
                           .runs = true,
                           .vmm = vmm,
                           .vmm_fd = (int)syscall(SYS_pidfd_open, vmm, 0)};
    int rc = 0;
    if (o->pidfile && s.vmm_fd >= 0)
        rc = pidfile_adopt(&s.pidfile, o->pidfile, vmm, s.vmm_fd);
    if (rc) {
        rc = error_set(e, VMSNAP_EXIT_FAILED, rc == -ESTALE ? 0 : -rc,
                       "%s can't be taken over: it is not the pidfile of process %d", o->pidfile,
                       (int)vmm);
        error_hint(e, "--pidfile with --resume names the file that the first restore wrote, and "
                      "makes no new one: name that, or leave --pidfile out");
        return rc;
    }
    /* Without such a process there is nothing to look after: the server says so. */
    if (TESTHOOK_BROKEN("not-supervised") || s.vmm_fd < 0 || begin(&s) != 0)
        return resume_run(o, vmm, NULL, e);
    int ignored;
    supervise(&s);
    return supervisor_finish(&s, &ignored, e);
}

static struct supervisor *attending; /* of this process */

void supervisor_forget(void)
{
    supervisor_close_fd(&attending->signal_fd);
    supervisor_close_fd(&attending->line);
    attending = NULL;
}

void supervisor_attend(const struct restore_options *o, const struct supervisor_charge *charge)
{
    struct supervisor s = {.o = o,
                           .charge = charge,
                           .word_fd = -1,
                           .command_fd = -1,
                           .lives = true,
                           .runs = true,
                           .vmm = charge->vmm,
                           .vmm_fd = charge->vmm_fd};
    struct error e = {0};
    int ignored;
    if (TESTHOOK_BROKEN("not-supervised") || begin(&s) < 0) {
        if (charge->serve(charge->opaque, &e))
            o->trouble(o->opaque, &e);
        return;
    }
    if (!s.server)
        supervisor_run_server(&s);
    attending = &s;
    supervise(&s);
    supervisor_finish(&s, &ignored, &e);
}
