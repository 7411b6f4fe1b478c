#include "restore/signals.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/thread.h"
#include "restore/supervised.h"

#define END_GRACE_MS 2000 /* as vmm_end() */

struct signals {
    struct vmm *vmm;
    int signal_fd, stop_fd;
    pthread_t thread;
    atomic_int caught;
    unsigned n_direct, n_asked; /* count_asked() */
    atomic_bool guest_runs;
    uint64_t
        kill_at_ns; /* the VMM has had its time to end; 0: nobody told it to, or it was killed */
};

bool signals_is_stopped(pid_t pid)
{
    char path[64], text[512];
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    CLEANUP_STREAM FILE *f = fopen(path, "re");
    size_t n = f ? fread(text, 1, sizeof(text) - 1, f) : 0;
    text[n] = '\0';
    const char *name_end = strrchr(text, ')');
    return name_end && strncmp(name_end, ") T", 3) == 0;
}

bool signals_stops_too(pid_t pid)
{
    for (int i = 0; i < 100 && pid > 0; i++) {
        if (signals_is_stopped(pid))
            return true;
        usleep(2000);
    }
    return false;
}

void signals_outlive(void)
{
    static const int ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGTTIN, SIGTTOU};
    for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++)
        signal(ignored[i], SIG_IGN);
}

/* One that the terminal sends to stop a job. */
static void pass_stop(const struct signals *s, int sig)
{
    int vmm = atomic_load(&s->vmm->pid);
    if (sig == SIGTSTP && signals_stops_too(vmm ? vmm : atomic_load(&s->vmm->child)))
        raise(SIGSTOP);
}

/* How often we were told to end: a signal of a terminal or of a whole group comes to us and to our
 * supervisor, which passes it on. What is passed on is counted there: of two equal signals that
 * wait for us at a time the kernel keeps one. */
static unsigned count_asked(struct signals *s, bool passed)
{
    unsigned n_passed = supervised_times_asked();
    s->n_direct += !passed;
    return n_passed > s->n_direct ? n_passed : s->n_direct;
}

static void pass_on(struct signals *s, const struct signalfd_siginfo *info)
{
    int sig = (int)info->ssi_signo;
    if (sig == SIGTSTP || sig == SIGTTIN || sig == SIGTTOU) {
        pass_stop(s, sig);
        return;
    }
    unsigned asked = count_asked(s, supervised_passed(info));
    if (asked == s->n_asked)
        return;
    s->n_asked = asked;
    if (asked == 1) {
        atomic_store(&s->caught, sig);
        s->kill_at_ns = clock_monotonic_ns() + END_GRACE_MS * 1000000ull;
        vmm_signal(s->vmm, sig);
    } else {
        vmm_signal(s->vmm, SIGKILL);
    }
}

/*
 * Until the guest runs the main thread may be waiting for the VMM, and a VMM that is ending need
 * not answer (QEMU 7.2 was seen to hang in its own end when a command came in just then): as in
 * vmm_end(), it is killed after a while. A guest that has run takes the time it wants.
 */
static int kill_in_ms(const struct signals *s)
{
    if (s->kill_at_ns == 0 || atomic_load(&s->guest_runs))
        return -1;
    return clock_ms_until(s->kill_at_ns);
}

static void *run_signals(void *opaque)
{
    struct signals *s = opaque;
    for (;;) {
        int left = kill_in_ms(s);
        if (left == 0) {
            vmm_signal(s->vmm, SIGKILL);
            s->kill_at_ns = 0;
            left = -1;
        }
        struct pollfd fds[2] = {{.fd = s->signal_fd, .events = POLLIN},
                                {.fd = s->stop_fd, .events = POLLIN}};
        if (poll(fds, 2, left) <= 0)
            continue;
        if (fds[1].revents)
            return NULL;
        struct signalfd_siginfo info;
        if (read(s->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
            pass_on(s, &info);
    }
}

static void free_signals(struct signals *s)
{
    if (s->signal_fd >= 0)
        close(s->signal_fd);
    if (s->stop_fd >= 0)
        close(s->stop_fd);
    free(s);
}

int signals_start(struct signals **out, struct vmm *v, struct error *e)
{
    struct signals *s = calloc(1, sizeof(*s));
    if (!s)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "no memory");
    s->vmm = v;
    static const int taken[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGTTIN, SIGTTOU};
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof(taken) / sizeof(taken[0]); i++)
        sigaddset(&set, taken[i]);
    s->signal_fd = signalfd(-1, &set, SFD_CLOEXEC);
    s->stop_fd = eventfd(0, EFD_CLOEXEC);
    int rc = s->signal_fd < 0 || s->stop_fd < 0 ? -errno : 0;
    if (rc == 0) {
        pthread_sigmask(SIG_BLOCK, &set, NULL);
        rc = thread_start(&s->thread, run_signals, s);
    }
    if (rc) {
        free_signals(s);
        return error_set(e, VMSNAP_EXIT_FAILED, -rc, "can't take over signals");
    }
    *out = s;
    return 0;
}

void signals_guest_runs(struct signals *s)
{
    atomic_store(&s->guest_runs, true);
}

int signals_caught(const struct signals *s)
{
    return s ? atomic_load(&s->caught) : 0;
}

void signals_stop(struct signals *s)
{
    if (!s)
        return;
    uint64_t one = 1;
    ssize_t n = write(s->stop_fd, &one, sizeof(one));
    (void)n; /* a fresh counter is never full */
    pthread_join(s->thread, NULL);
    free_signals(s);
}
