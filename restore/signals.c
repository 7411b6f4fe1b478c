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

#define END_GRACE_MS 2000 /* as vmm_end() */

struct signals {
    struct vmm *vmm;
    int signal_fd, stop_fd;
    pthread_t thread;
    atomic_int caught;
    atomic_bool guest_runs;
    uint64_t
        kill_at_ns; /* the VMM has had its time to end; 0: nobody told it to, or it was killed */
};

static bool is_stopped(int pid)
{
    char path[64], text[512];
    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    CLEANUP_STREAM FILE *f = fopen(path, "re");
    size_t n = f ? fread(text, 1, sizeof(text) - 1, f) : 0;
    text[n] = '\0';
    const char *name_end = strrchr(text, ')');
    return name_end && strncmp(name_end, ") T", 3) == 0;
}

/* Whether the VMM is stopped by the same Ctrl-Z. Not so in another process group, nor in one
 * without a shell that could let it go on (the kernel then ignores the signal). */
static bool vmm_stops_too(const struct signals *s)
{
    int pid = atomic_load(&s->vmm->pid);
    if (pid == 0)
        pid = atomic_load(&s->vmm->child);
    for (int i = 0; i < 100 && pid > 0; i++) {
        if (is_stopped(pid))
            return true;
        usleep(2000);
    }
    return false;
}

/* One that the terminal sends to stop a job. */
static void pass_stop(const struct signals *s, int sig)
{
    if (sig == SIGTSTP && vmm_stops_too(s))
        raise(SIGSTOP);
}

static void pass_on(struct signals *s, int sig)
{
    if (sig == SIGTSTP || sig == SIGTTIN || sig == SIGTTOU) {
        pass_stop(s, sig);
        return;
    }
    if (atomic_load(&s->caught) == 0) {
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
            pass_on(s, (int)info.ssi_signo);
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
