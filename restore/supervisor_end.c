/* supervisor_end.c - when the time of a supervisor is over, and what it then leaves in order. */
#include "restore/supervisor_internal.h"

#include <errno.h>
#include <string.h>
#include <sys/wait.h>

#include "common/clock.h"
#include "restore/launch/pidfile.h"
#include "restore/launch/vmm.h"

#define KEEPER_MS 1000 /* for the keeper to end a VMM */
#define CLEAN_UP_MS 10000

bool supervisor_wrapper_is_left(const struct supervisor *s)
{
    siginfo_t info;
    return !s->by_hand && s->child && s->child != s->vmm && s->child_status == -1 &&
           waitid(P_PID, (id_t)s->child, &info, WEXITED | WNOHANG | WNOWAIT) == 0;
}

bool supervisor_is_over(struct supervisor *s)
{
    if (s->end != END_NONE)
        return true;
    /* A detached first server may stay for the pidfile's sake; that needs no supervisor. */
    bool done = !s->server || (s->o->detach && s->is_first);
    if (s->given_up && s->leaves && !s->by_other)
        s->end = END_GIVEN_UP;
    else if (s->complete && done && (s->by_hand || s->o->detach || s->leaves))
        s->end = END_COMPLETE;
    else if (!s->server && s->lives && supervisor_vmm_ended(s) && !supervisor_wrapper_is_left(s))
        s->end = s->runs ? END_VMM : END_TOO_SOON;
    return s->end != END_NONE;
}

/* Until no child is left. */
static bool wait_for_children(int timeout_ms)
{
    uint64_t until_ns = clock_monotonic_ns() + (uint64_t)timeout_ms * 1000000u;
    while (waitpid(-1, NULL, WNOHANG) >= 0) {
        if (clock_ms_until(until_ns) == 0)
            return false;
        usleep(2000);
    }
    return true;
}

/* The keeper ends what the server had started, and both come to us; but what the server had just
 * forked the keeper does not know. */
static void end_children(const struct supervisor *s)
{
    if (wait_for_children(KEEPER_MS) || s->lives)
        return;
    vmm_kill_children(SIGKILL);
    wait_for_children(CLEAN_UP_MS);
}

static int explain_too_soon(const struct supervisor *s, struct error *e)
{
    int number = WTERMSIG(s->end_status);
    e->guest = s->by_hand ? GUEST_WAITING : GUEST_NOT_STARTED;
    if (s->by_hand || number == s->first_signal)
        return error_set(e, (enum vmsnap_exit)(128 + number), EINTR, "interrupted by signal %d",
                         number);
    int rc = error_set(e, VMSNAP_EXIT_FAILED, 0,
                       "the server was ended by signal %d (%s) before the guest ran", number,
                       strsignal(number));
    error_hint(e, "nothing of it is left: start it again");
    return rc;
}

static int vmm_exit_code(const struct supervisor *s)
{
    int status = s->vmm_status != -1 ? s->vmm_status : s->child_status;
    if (status == -1)
        return VMSNAP_EXIT_FAILED; /* the server had seen it, and died of itself before it said so
                                    */
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void remove_pidfile(const struct supervisor *s)
{
    struct pidfile p;
    if (s->lives && s->o->pidfile && pidfile_adopt(&p, s->o->pidfile, s->vmm, s->vmm_fd) == 0)
        pidfile_remove(&p);
}

/* As a detached server does that has nothing left to do. */
static void stay_for_pidfile(struct supervisor *s)
{
    if (!s->server && !s->by_hand && s->o->pidfile)
        pidfile_adopt(&s->pidfile, s->o->pidfile, s->vmm, s->vmm_fd);
    pidfile_stay(&s->pidfile);
}

int supervisor_explain_failure(const struct supervisor *s, struct error *e)
{
    int rc = error_set(e, VMSNAP_EXIT_FAILED, 0,
                       "process %d is served no more: its servers failed %u times without getting "
                       "any further",
                       (int)s->vmm, s->n_failures);
    error_hint(e, "'vmsnap restore --resume %d [IMAGE]' tries it again", (int)s->vmm);
    e->guest = GUEST_WAITING;
    return rc;
}

int supervisor_finish(struct supervisor *s, int *vmm_status, struct error *e)
{
    switch (s->end) {
    case END_NONE:
        break;
    case END_SERVER:
        if (s->by_hand &&
            (s->end_status == VMSNAP_EXIT_DONE || s->end_status == VMSNAP_EXIT_WARNINGS))
            stay_for_pidfile(s);
        _exit(s->end_status);
    case END_TOO_SOON:
        if (!s->by_hand) {
            end_children(s);
            remove_pidfile(s);
        }
        return explain_too_soon(s, e);
    case END_COMPLETE:
        if (s->charge)
            break;
        stay_for_pidfile(s);
        _exit(VMSNAP_EXIT_DONE);
    case END_VMM:
        if (s->charge) {
            s->o->report(s->o->opaque, "exit",
                         json_pack("{s:i, s:n}", "vmm_pid", (int)s->vmm, "exit_status"));
            break;
        }
        remove_pidfile(s);
        *vmm_status = vmm_exit_code(s);
        if (!s->by_hand && !s->o->detach)
            s->o->report(s->o->opaque, "exit", json_pack("{s:i}", "exit_status", *vmm_status));
        return 0;
    case END_GIVEN_UP:
        return supervisor_explain_failure(s, e);
    }
    return 0;
}
