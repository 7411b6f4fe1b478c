/*
 * peer.c - see peer.h.
 *
 *     vmsnap restore --listen     the listener: accepts, and waits for its children
 *      `- vmsnap-peer             this file: reads the handoff, checks it, supervises; one per VM
 *          `- vmsnap-server       peer_serve.c: the faults, the fill
 *
 * Nothing that a VMM says is looked at in the listener's process, and nothing of one VM's lies in
 * another's. What every server of this VM needs (descriptors, the places of the memory) is made
 * here, before the first is forked, so that a successor has it whatever has become of the VMM.
 *
 * The VMM is the process at the other end of the connection. Whether it lives a pidfd tells: old
 * versions close the connection as soon as they have handed over.
 *
 * A further handoff on the same connection is for a process of its own as well: forked from here
 * through one that ends at once, so that it becomes the listener's.
 */
#include "restore/listen/peer.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/testhook.h"
#include "restore/listen/claim.h"
#include "restore/listen/peer_internal.h"
#include "restore/listen/who.h"
#include "restore/memory/theirs.h"
#include "restore/record.h"
#include "restore/supervisor.h"

/* A VMM connects in order to send: who says nothing for so long must not hold a process. */
#define SILENT_NS 5000000000ull

/* ---- what was handed over ---- */

/* At the other end; 0: it lies in another pid namespace. -errno. */
static int connected_pid(int connection)
{
    struct ucred who;
    socklen_t len = sizeof(who);
    return getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &who, &len) ? -errno : who.pid;
}

static int place_blocks(struct peer *p, const struct peer_message *m, struct error *e)
{
    struct block_place *places = calloc(m->n_regions, sizeof(*places));
    if (!places)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "no memory");
    for (uint32_t i = 0; i < m->n_regions; i++)
        places[i] = (struct block_place){.hva = m->regions[i].hva,
                                         .bytes = m->regions[i].bytes,
                                         .page_bytes = m->regions[i].page_bytes,
                                         .offset = m->regions[i].offset};
    int rc = blocks_place(&p->blocks, p->c->img, places, m->n_regions, e);
    if (rc)
        error_wrap(e, "image %s", p->c->image_path);
    free(places);
    return rc;
}

void peer_add_ends(sigset_t *set)
{
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGHUP);
    sigaddset(set, SIGQUIT);
}

/* Hears it. Told to end before anything has come we do; the signal is not taken away, so that the
 * supervisor hears it as well. */
static int hear_handoff(struct peer *p, struct peer_message *m, struct error *e)
{
    sigset_t ends;
    sigemptyset(&ends);
    peer_add_ends(&ends);
    CLEANUP_FD int end_fd = signalfd(-1, &ends, SFD_CLOEXEC);
    uint64_t until_ns = p->began_ns + (uint64_t)p->o.timeout_ms * 1000000u;
    uint64_t first_ns = p->began_ns + SILENT_NS < until_ns ? p->began_ns + SILENT_NS : until_ns;
    int rc = mailbox_take(&p->mailbox, m, &p->uffd, end_fd, first_ns, e);
    if (rc == -ETIMEDOUT && !mailbox_is_empty(&p->mailbox))
        rc = mailbox_take(&p->mailbox, m, &p->uffd, end_fd, until_ns, e);
    mailbox_drop_fds(&p->mailbox); /* more than one came with it */
    return rc;
}

/* Believes it once it is checked. */
static int take_handoff(struct peer *p, struct error *e)
{
    struct peer_message m;
    int rc = hear_handoff(p, &m, e);
    if (rc == 0) {
        TESTHOOK_POINT("listen-heard");
        rc = who_connected(p->mailbox.connection, p->began_ns, &p->target, e);
    }
    if (rc)
        return rc;
    log_set_process(p->target.pid);
    rc = place_blocks(p, &m, e);
    if (rc == 0)
        rc = claim_take(p->c->claims, p->target.pid, &p->blocks, &p->claim, e);
    if (rc == 0)
        rc = theirs_check(p->uffd, &p->target, &p->blocks, e);
    if (rc)
        return rc;
    if (!theirs_tells_discards(p->uffd))
        log_info("process %d does not tell what its guest gives back (EVENT_REMOVE)",
                 (int)p->target.pid);
    return record_hold(&p->record_fd, &p->target, p->c->img, p->blocks.count, e);
}

/* Nothing is ours any more when this is told: the VMM's end of the connection shows it. */
static _Noreturn void refuse(struct peer *p, struct error *e)
{
    int pid = p->target.pid ? p->target.pid : connected_pid(p->mailbox.connection);
    e->vmm_pid = pid > 0 ? pid : 0;
    if (pid > 0)
        error_wrap(e, "process %d is not served", pid);
    else
        error_wrap(e, "a VMM that connected is not served");
    error_hint(e,
               "it keeps its userfaultfd, and waits at the first touch of its memory: end it and "
               "load its snapshot again");
    e->guest = e->err == EALREADY ? GUEST_RUNNING : GUEST_WAITING;
    if (p->uffd >= 0)
        close(p->uffd);
    mailbox_close(&p->mailbox);
    atomic_fetch_add(&p->c->roll->n_refused, 1);
    p->o.trouble(p->o.opaque, e);
    _exit(e->exit_code);
}

/* ---- one more on the same connection ---- */

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* What only a server needs, the VMM's userfaultfd above all, is not held for as
 * long as it lives. */
static void let_go(void *opaque)
{
    struct peer *p = opaque;
    close_fd(&p->uffd);
    close_fd(&p->record_fd);
    close_fd(&p->claim);
}

/* By a server of ours, which has counted it, or by somebody who took over; or the VMM has ended. */
static void all_is_in(void *opaque)
{
    const struct peer *p = opaque;
    if (target_alive(&p->target))
        peer_note_complete(opaque);
    let_go(opaque);
}

static int connection_of(void *opaque)
{
    const struct peer *p = opaque;
    return p->mailbox.connection;
}

/* In the process of the next VM. */
static _Noreturn void begin_next(struct peer *p, int place)
{
    int connection = p->mailbox.connection;
    let_go(p);
    log_set_process(0);
    target_close(&p->target);
    supervisor_forget();
    peer_run(p->c, place, connection, clock_monotonic_ns());
}

static bool ended_well(pid_t child)
{
    int status = -1;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* Something has come over the connection, or its end. */
static void heard(void *opaque)
{
    struct peer *p = opaque;
    if (mailbox_look(&p->mailbox)) {
        int place = roll_reserve(p->c->roll);
        pid_t between = place < 0 ? -1 : fork();
        if (between == 0) {
            pid_t next = TESTHOOK_FAIL("listen-fork-next") ? -1 : fork();
            if (next == 0)
                begin_next(p, place);
            _exit(next < 0);
        }
        if (between < 0 || !ended_well(between)) {
            log_warn("no process for a further VM of process %d", (int)p->target.pid);
            atomic_fetch_add(&p->c->roll->n_refused, 1);
            if (place >= 0)
                roll_give_up(p->c->roll, place);
        }
    }
    /* The next one has it, or there is nothing more to hear. */
    close_fd(&p->mailbox.connection);
}

/* ---- whose it is: of many VMs ---- */

static void report_of_one(void *opaque, const char *type, json_t *object)
{
    const struct peer *p = opaque;
    if (object && p->target.pid)
        json_object_set_new(object, "vmm_pid", json_integer(p->target.pid));
    p->c->o->report(p->c->o->opaque, type, object);
}

static void trouble_of_one(void *opaque, const struct error *e)
{
    const struct peer *p = opaque;
    struct error told = *e;
    told.vmm_pid = p->target.pid ? p->target.pid : e->vmm_pid;
    char who[32];
    snprintf(who, sizeof(who), "process %d", told.vmm_pid);
    if (told.vmm_pid && !strstr(told.message, who))
        error_wrap(&told, "%s", who);
    p->c->o->trouble(p->c->o->opaque, &told);
}

/* ---- the whole ---- */

static void attend(struct peer *p)
{
    const struct supervisor_charge charge = {.vmm = p->target.pid,
                                             .vmm_fd = p->target.pidfd,
                                             .serve = peer_serve,
                                             .connection = connection_of,
                                             .heard = heard,
                                             .complete = all_is_in,
                                             .opaque = p};
    supervisor_attend(&p->o, &charge);
}

_Noreturn void peer_run(const struct peer_config *c, int place, int connection, uint64_t began_ns)
{
    struct peer p = {.c = c,
                     .o = *c->o,
                     .place = place,
                     .began_ns = began_ns,
                     .uffd = -1,
                     .target = {.pidfd = -1, .proc_fd = -1, .pagemap_fd = -1, .mem_fd = -1},
                     .record_fd = -1,
                     .claim = -1};
    struct error e = {0};
    p.o.opaque = &p;
    p.o.report = report_of_one;
    p.o.trouble = trouble_of_one;
    prctl(PR_SET_NAME, "vmsnap-peer");
    if (p.o.vm_process)
        p.o.vm_process(p.o.opaque);
    roll_set(c->roll, place, getpid());
    sigprocmask(SIG_SETMASK, &c->mask, NULL);
    int rc = mailbox_open(&p.mailbox, connection, &e);
    if (rc == 0)
        rc = take_handoff(&p, &e);
    if (rc == -ENODATA)
        _exit(0);
    if (rc)
        refuse(&p, &e);
    TESTHOOK_POINT("listen-checked");
    roll_note_served(c->roll, place, p.target.pid);
    attend(&p);
    _exit(0);
}
