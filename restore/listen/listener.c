/*
 * listener.c - see listen.h. The process that a shell or a service manager knows: it has the socket
 * and the image, accepts, and forks. It touches nothing that a VMM sends (peer.c).
 *
 * A signal that would end it must not end the guests' memory: they wait for ever at what is not in
 * yet, since a VMM keeps its userfaultfd. So the first one ends the listening: no more VMs are
 * taken, and we leave when those that are served have all their memory or have ended. The second
 * one lets us leave at once; the servers, in sessions of their own, go on. Only SIGKILL ends them.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/json_text.h"
#include "common/kernel.h"
#include "common/log.h"
#include "common/testhook.h"
#include "restore/decode/learn.h"
#include "restore/launch/detach.h"
#include "restore/launch/pidfile.h"
#include "restore/listen/claim.h"
#include "restore/listen/front.h"
#include "restore/listen/listen.h"
#include "restore/listen/orphans.h"
#include "restore/listen/peer.h"
#include "restore/memory/attach.h"
#include "restore/serve/damage.h"

#define ACCEPT_AGAIN_NS 500000000ull
#define SHOWN_VMS 8u
#define MAX_WAITING 1024 /* connections that are taken yet when we end; the socket holds fewer */

struct listener {
    struct restore_options o; /* as the VMs' processes have them */
    struct front front;
    struct peer_config peers;
    struct pidfile pidfile;
    struct orphans orphans;
    char image_path[PATH_MAX];
    int signal_fd;
    int word_fd;       /* detached: where our caller waits; -1 */
    int kept;          /* accepted, and there was no process for it yet; -1 */
    uint64_t again_ns; /* not before that another one is accepted; 0: at once */
    unsigned n_asked;  /* signals that are to end us */
    int last_signal;
};

/* ---- before anybody may connect ---- */

static int check_learning(struct listener *l, struct error *e)
{
    struct learn learn = {0};
    int rc = l->o.learn ? learn_begin(&learn, l->peers.img, e) : 0;
    l->peers.n_learned_before = learn.n_before;
    learn_free(&learn);
    return rc;
}

/* A QEMU is started from its image, and has memory that no handoff names. What other VMMs hand
 * over is not known. */
static int check_kind(const struct listener *l, struct error *e)
{
    json_t *description = json_loads(image_description(l->peers.img), 0, NULL);
    bool is_qemu = strcmp(json_text(description, "vmm", ""), "qemu") == 0;
    json_decref(description);
    if (!is_qemu)
        return 0;
    error_set(e, VMSNAP_EXIT_MISMATCH, 0, "%s is the image of a QEMU, which --listen can't serve",
              l->o.image_path);
    error_hint(e, "'vmsnap restore %s' starts it; --listen is for images of a Firecracker",
               l->o.image_path);
    return -EINVAL;
}

static int open_image(struct listener *l, struct error *e)
{
    int rc = kernel_require(e);
    if (rc == 0)
        rc = damage_check_kernel(l->o.poison_damage, e);
    if (rc == 0)
        rc = image_open(&l->peers.img, l->o.image_path, e);
    if (rc == 0)
        rc = check_kind(l, e);
    if (rc == 0)
        rc = attach_check_kernel(l->peers.img, e);
    if (rc == 0)
        rc = check_learning(l, e);
    if (rc == 0 && !realpath(l->o.image_path, l->image_path))
        l->image_path[0] = '\0'; /* a descriptor's, of a file without a name */
    return rc;
}

static int take_signals(struct listener *l, struct error *e)
{
    static const int taken[] = {SIGCHLD, SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1};
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof(taken) / sizeof(taken[0]); i++)
        sigaddset(&set, taken[i]);
    signal(SIGCHLD, SIG_DFL); /* ignored, it would keep ends from us */
    l->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (l->signal_fd < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't take signals");
    sigprocmask(SIG_BLOCK, &set, &l->peers.mask);
    peer_add_ends(&l->peers.mask);
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); /* a VM may be a child's child */
    return 0;
}

static int write_pidfile(struct listener *l, const char *path, struct error *e)
{
    struct target self;
    int rc = path ? target_open(&self, getpid(), e) : 0;
    if (rc || !path)
        return rc;
    rc = pidfile_write(&l->pidfile, path, &self, e);
    target_close(&self);
    return rc;
}

static int begin(struct listener *l, const struct restore_options *o, const char *socket_path,
                 struct error *e)
{
    int rc = open_image(l, e);
    if (rc)
        return rc;
    l->peers.roll = roll_new();
    if (!l->peers.roll)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "no memory");
    l->peers.claims = claim_file();
    if (l->peers.claims < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, -l->peers.claims, "no descriptor");
    rc = take_signals(l, e);
    if (rc == 0)
        rc = front_open(&l->front, socket_path, e);
    if (rc == 0)
        rc = write_pidfile(l, o->pidfile, e);
    return rc;
}

/* ---- VMs ---- */

static _Noreturn void become_peer(struct listener *l, int place, int connection, uint64_t began_ns)
{
    close(l->signal_fd);
    front_forget(&l->front);
    orphans_close(&l->orphans);
    setsid(); /* what a terminal sends is for the listener */
    peer_run(&l->peers, place, connection, began_ns);
}

/* For want of something that some VM's end may give back. The connections wait in the socket, with
 * all that was sent over them. */
static void pause_accepting(struct listener *l, const char *why)
{
    if (l->again_ns == 0)
        log_warn("a VM that connects has to wait: %s", why);
    l->again_ns = clock_monotonic_ns() + ACCEPT_AGAIN_NS;
}

/* 0 or -errno. */
static int start_peer(struct listener *l, int connection)
{
    int place = roll_reserve(l->peers.roll);
    if (place < 0)
        return -EUSERS;
    pid_t pid = TESTHOOK_FAIL("listen-fork") ? -1 : fork();
    int err = errno;
    if (pid == 0)
        become_peer(l, place, connection, clock_monotonic_ns());
    roll_set(l->peers.roll, place, pid < 0 ? 0 : pid);
    return pid < 0 ? -err : 0;
}

/* True: there may be another one. */
static bool accept_one(struct listener *l)
{
    if (l->kept < 0)
        l->kept = accept4(l->front.fd, NULL, NULL, SOCK_CLOEXEC);
    int rc = l->kept < 0 ? -errno : start_peer(l, l->kept);
    if (rc == 0) {
        close(l->kept);
        l->kept = -1;
        l->again_ns = 0;
    } else if (rc != -EAGAIN || l->kept >= 0) {
        if (rc == -EINTR || rc == -ECONNABORTED)
            return true;
        pause_accepting(l, rc == -EUSERS ? "there are too many already" : strerror(-rc));
    }
    return rc == 0;
}

/* A process that was killed before its VM was served has taken the handoff with it. */
static void note_killed(struct listener *l, pid_t pid, int number, bool served)
{
    log_warn("process %d, which %s a VM, was ended by signal %d (%s)%s", (int)pid,
             served ? "looked after the server of" : "was about to serve", number,
             strsignal(number),
             served ? "" : ": that one waits for its memory, and is to be loaded again");
    if (!served)
        atomic_fetch_add(&l->peers.roll->n_refused, 1);
}

static void reap(struct listener *l)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        bool served = false;
        int kept;
        if (roll_remove(l->peers.roll, pid, WIFSIGNALED(status), &served, &kept) &&
            WIFSIGNALED(status))
            note_killed(l, pid, WTERMSIG(status), served);
        if (kept >= 0)
            orphans_add(&l->orphans, l->peers.roll, kept);
        if (l->again_ns)
            l->again_ns = 1; /* there is room */
    }
}

/* ---- the end ---- */

static void stop_listening(struct listener *l)
{
    for (int i = 0; i < MAX_WAITING && accept_one(l); i++) /* they may have sent it all */
        ;
    if (l->kept >= 0) {
        log_warn("a VM that connected is not served, for want of a process");
        atomic_fetch_add(&l->peers.roll->n_refused, 1);
        close(l->kept);
        l->kept = -1;
    }
    front_close(&l->front);
    unsigned n = roll_list_incomplete(l->peers.roll, NULL, 0);
    roll_signal(l->peers.roll, SIGTERM);
    if (n > 0)
        log_warn("no more VMs are taken; %u %s served until %s (once more to leave at once: they "
                 "are served on all the same)",
                 n, n == 1 ? "is" : "are",
                 l->o.no_fill ? "they end (--no-fill)" : "all memory is in");
    else
        log_warn("no more VMs are taken");
}

static void take_signal(struct listener *l)
{
    struct signalfd_siginfo info;
    while (read(l->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (info.ssi_signo == SIGCHLD)
            continue;
        if (info.ssi_signo == SIGUSR1) {
            roll_signal(l->peers.roll, SIGUSR1);
            continue;
        }
        l->last_signal = (int)info.ssi_signo;
        if (l->n_asked++ == 0)
            stop_listening(l);
    }
}

static void listen_to_the_end(struct listener *l)
{
    for (;;) {
        reap(l);
        if (l->n_asked > 1 || (l->n_asked == 1 && roll_signal(l->peers.roll, 0) == 0))
            return;
        int wait_ms = l->again_ns && l->front.fd >= 0 ? clock_ms_until(l->again_ns) : -1;
        bool pauses = wait_ms > 0;
        struct pollfd fds[2] = {{.fd = l->signal_fd, .events = POLLIN},
                                {.fd = pauses ? -1 : l->front.fd, .events = POLLIN}};
        poll(fds, 2, wait_ms);
        if (fds[0].revents)
            take_signal(l);
        else if (fds[1].revents || (l->kept >= 0 && wait_ms == 0))
            accept_one(l);
        else if (wait_ms == 0)
            l->again_ns = 0; /* and nobody waits */
    }
}

/* ---- the whole ---- */

static json_t *describe_listening(const struct listener *l)
{
    return json_pack("{s:s, s:i, s:s}", "socket", l->front.path, "listener_pid", (int)getpid(),
                     "image", l->image_path);
}

static json_t *describe_summary(const struct listener *l, unsigned n_left)
{
    const struct roll *r = l->peers.roll;
    unsigned complete, unserved;
    orphans_count(&l->orphans, r, &complete, &unserved);
    return json_pack("{s:I, s:I, s:I, s:i, s:i}", "vms", (json_int_t)atomic_load(&r->n_served),
                     "vms_complete", (json_int_t)(atomic_load(&r->n_complete) + complete),
                     "handoffs_refused", (json_int_t)atomic_load(&r->n_refused), "vms_left",
                     (int)n_left, "vms_unserved", (int)unserved);
}

/* Who waits for it is told that it listens. */
static void tell_listening(struct listener *l)
{
    json_t *listening = describe_listening(l);
    if (l->word_fd >= 0) {
        detach_tell_running(l->word_fd, listening);
        l->word_fd = -1;
        l->o.detached(l->o.opaque);
    }
    l->o.report(l->o.opaque, "listening", listening);
}

/* By a second signal: VMs are left to their servers. */
static int explain_leaving(const struct listener *l, unsigned n_left, struct error *e)
{
    pid_t vmms[SHOWN_VMS];
    unsigned n = roll_list_incomplete(l->peers.roll, vmms, SHOWN_VMS);
    char text[16 * SHOWN_VMS + 32] = "";
    size_t used = 0;
    for (unsigned i = 0; i < n && i < SHOWN_VMS; i++)
        used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%d",
                                 i        ? ", "
                                 : n == 1 ? ": process "
                                          : ": processes ",
                                 (int)vmms[i]);
    if (n > SHOWN_VMS)
        snprintf(text + used, sizeof(text) - used, " and others");
    e->guest = GUEST_UNKNOWN;
    error_set(e, (enum vmsnap_exit)(128 + l->last_signal), 0,
              "left by signal %d; %u VM%s served on in the background%s", l->last_signal, n_left,
              n_left == 1 ? " is" : "s are", text);
    error_hint(e, "nothing is to be done; if a server dies with its supervisor, 'vmsnap restore "
                  "--resume PID' goes on");
    return -EINTR;
}

static int run(struct listener *l, const struct restore_options *o, const char *socket_path,
               struct error *e)
{
    int rc = begin(l, o, socket_path, e);
    if (rc)
        return rc;
    tell_listening(l);
    if (o->poison_damage)
        log_warn("where the image is damaged --on-damage poison ends a Firecracker by SIGBUS once "
                 "its guest touches that: it makes no machine check of it");
    listen_to_the_end(l);
    unsigned n_left = roll_signal(l->peers.roll, 0);
    l->o.report(l->o.opaque, "summary", describe_summary(l, n_left));
    if (n_left == 0)
        return 0;
    return explain_leaving(l, n_left, e);
}

int listen_run(const struct restore_options *o, const char *socket_path, struct error *e)
{
    struct listener l = {.o = *o, .front = {.fd = -1}, .signal_fd = -1, .word_fd = -1, .kept = -1};
    json_t *listening;
    int rc = 0;
    if (o->detach && !detach_fork(&l.word_fd, &listening, &rc, e)) {
        if (rc == 0)
            o->report(o->opaque, "listening", listening);
        return rc;
    }
    l.o.detach = false;
    l.o.pidfile = NULL;
    l.peers = (struct peer_config){.o = &l.o, .image_path = l.image_path, .claims = -1};
    rc = run(&l, o, socket_path, e);
    front_close(&l.front);
    orphans_close(&l.orphans);
    pidfile_remove(&l.pidfile);
    if (l.word_fd >= 0)
        detach_tell_error(l.word_fd, e);
    if (l.peers.claims >= 0)
        close(l.peers.claims);
    if (l.peers.img)
        image_close(l.peers.img);
    if (o->detach)
        _exit(rc ? e->exit_code : 0);
    return rc;
}
