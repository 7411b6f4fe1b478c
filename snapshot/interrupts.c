#include "snapshot/interrupts.h"

#include <errno.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common/progress.h"

int interrupts_watch(struct interrupts *s)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    s->fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return s->fd < 0 ? -errno : 0;
}

bool interrupts_seen(struct interrupts *s)
{
    struct signalfd_siginfo info;
    while (read(s->fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (info.ssi_signo == SIGUSR1)
            progress_request();
        else if (!s->by)
            s->by = (int)info.ssi_signo;
    }
    return s->by != 0;
}

int interrupts_error(const struct interrupts *s, struct error *e)
{
    bool term = s->by == SIGTERM;
    return error_set(e, term ? VMSNAP_EXIT_SIGTERM : VMSNAP_EXIT_SIGINT, 0, "interrupted by %s",
                     term ? "SIGTERM" : "SIGINT");
}
