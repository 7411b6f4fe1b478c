/*
 * The pause of a Firecracker: PATCH /vm Paused, PUT /snapshot/create, protection while that is held
 * (firecracker_hold.h), PATCH /vm Resumed. Each request has a connection of its own, so one that
 * was cut short by our death disturbs nobody; the API thread takes them one after the other, so the
 * reply to a later one says that an earlier one is done.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/testhook.h"
#include "snapshot/source/firecracker.h"

/* How long at least a guest that we may have paused is waited for, whatever --timeout says. */
#define RESUME_PATIENCE_MS 60000
/* A request of a worker that has just died may still be on its way through the API thread. */
#define SETTLE_MS 50
#define LET_GO_MS 2000
#define ASK_AGAIN_MS 100
#define SLOW                                                                                       \
    "its API thread is busy, or its storage slow (in its /dev/shm, /run or /tmp): --timeout "      \
    "waits "                                                                                       \
    "longer"
#define OTHER_WAY                                                                                  \
    "try it again; if it stays so, pause it, let it write both files (PUT /snapshot/create), and " \
    "'vmsnap import firecracker' makes the image"
#define HELD_MS 5000 /* from the state file's end to the open of the memory file */

static int patience_ms(const struct source *base)
{
    return base->timeout_ms > RESUME_PATIENCE_MS ? base->timeout_ms : RESUME_PATIENCE_MS;
}

int source_firecracker_pause(struct source *base, bool *was_running, struct error *e)
{
    struct source_firecracker *s = source_firecracker_of(base);
    struct source_control *c = &s->c;
    int ret = firecracker_hold_make(&s->hold, &base->target, e);
    if (!ret)
        ret = firecracker_get_info(s->http, base->timeout_ms, &s->info, e);
    if (!ret)
        ret = firecracker_check_state(&s->info, e);
    if (ret)
        return ret;
    *was_running = s->info.state == FIRECRACKER_RUNNING;
    if (!*was_running)
        return 0;
    atomic_store(&c->shared->stopped_by_us, true);
    TESTHOOK_POINT("source-before-stop");
    c->stop_sent_ns = clock_monotonic_ns();
    ret = firecracker_set_state(s->http, "Paused", base->timeout_ms, e);
    c->stopped_ns = clock_monotonic_ns();
    TESTHOOK_POINT("source-after-stop");
    return ret;
}

/* ---- the state ---- */

/* The call has ended before the VMM came to what holds it: it can't save its state. */
static int refused(struct source_firecracker *s, struct error *e)
{
    struct http_reply reply;
    char fault[384];
    http_take(s->http, &reply);
    firecracker_fault(&reply, fault, sizeof(fault));
    error_set(e, VMSNAP_EXIT_VMM, 0, "PUT /snapshot/create: status %d%s%s", reply.status,
              fault[0] ? ", " : "", fault);
    error_hint(e, "the VMM can't save its own state: its log tells more");
    json_decref(reply.body);
    return -EIO;
}

/* Waits until the state file is closed. */
static int wait_until_held(struct source_firecracker *s, struct error *e)
{
    uint64_t until_ns = clock_monotonic_ns() + (uint64_t)s->c.base.timeout_ms * 1000000u;
    while (!firecracker_hold_is_held(&s->hold)) {
        /* Before the wait, not after it: who gets no CPU then looks once more at what has come. */
        if (clock_monotonic_ns() >= until_ns) {
            error_set(e, VMSNAP_EXIT_TIMEOUT, ETIMEDOUT, "PUT /snapshot/create: no state file");
            error_hint(e, SLOW);
            return -ETIMEDOUT;
        }
        int ret = http_step(s->http, s->hold.inotify_fd, clock_ms_until(until_ns), e);
        if (ret < 0)
            return ret;
        if (ret > 0)
            return refused(s, e);
    }
    return 0;
}

/* Who waits in our FIFO is the process whose memory is saved: else the socket is another's. The
 * state file is there just before the VMM comes to the FIFO, so it is waited for. */
static int check_held(struct source_firecracker *s, struct error *e)
{
    const struct target *t = &s->c.base.target;
    int timeout_ms = s->c.base.timeout_ms < HELD_MS ? s->c.base.timeout_ms : HELD_MS;
    uint64_t until_ns = clock_monotonic_ns() + (uint64_t)timeout_ms * 1000000u;
    while (!firecracker_hold_holds(&s->hold, t)) {
        if (clock_monotonic_ns() >= until_ns) {
            error_set(e, VMSNAP_EXIT_TARGET, 0,
                      "the VM behind the API socket has saved its state, but process %d is not the "
                      "one that waits for its memory file",
                      (int)t->pid);
            error_hint(e, "look which VM --pid names, and which --api");
            return -ESRCH;
        }
        int ret = http_step(s->http, -1, 1, e);
        if (ret)
            return ret < 0 ? ret : refused(s, e);
    }
    return 0;
}

int source_firecracker_save_state(struct source *base, void **buf, size_t *len, struct error *e)
{
    struct source_firecracker *s = source_firecracker_of(base);
    CLEANUP_FREE char *body = firecracker_hold_request(&s->hold);
    int ret = body ? http_begin(s->http, "PUT", "/snapshot/create", body, e)
                   : error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot ask for the state");
    if (!ret)
        ret = wait_until_held(s, e);
    if (!ret)
        ret = firecracker_hold_read_state(&s->hold, buf, len, e);
    if (!ret)
        ret = check_held(s, e);
    TESTHOOK_POINT("source-after-state");
    if (ret)
        error_wrap(e, "saving the device state");
    return ret;
}

/* ---- and on ---- */

static int not_held(struct error *e)
{
    error_set(e, VMSNAP_EXIT_VMM, EPROTO,
              "the VMM went on with its devices before its memory was protected: PUT "
              "/snapshot/create did not wait for its memory file");
    error_hint(e, OTHER_WAY);
    return -EPROTO;
}

/* The call ends: it can't write memory to what has no length. Should it write all the same, it
 * finds nobody who reads. */
static int finish_call(struct source_firecracker *s, struct error *e)
{
    uint64_t until_ns = clock_monotonic_ns() + (uint64_t)s->c.base.timeout_ms * 1000000u;
    struct http_reply reply;
    int ret, watched = s->hold.reader_fd;
    while ((ret = http_step(s->http, watched, clock_ms_until(until_ns), e)) == 0) {
        char byte;
        ssize_t n = watched >= 0 ? read(watched, &byte, 1) : -1;
        if (n > 0) {
            close(s->hold.reader_fd);
            s->hold.reader_fd = -1;
        }
        if (n >= 0) /* 0: the VMM has closed it, which a poll would tell again and again */
            watched = -1;
        if (clock_monotonic_ns() < until_ns)
            continue;
        error_set(e, VMSNAP_EXIT_TIMEOUT, ETIMEDOUT, "PUT /snapshot/create: no reply");
        error_hint(e, SLOW);
        return -ETIMEDOUT;
    }
    if (ret < 0)
        return ret;
    http_take(s->http, &reply);
    log_debug("PUT /snapshot/create: status %d, as it is to be", reply.status);
    json_decref(reply.body);
    return 0;
}

/* Lets the VMM go, whatever became of the call. One that was cut off tells nothing of whether the
 * VMM was held until now. */
static int release(struct source_firecracker *s, struct error *e)
{
    int early = http_is_busy(s->http) ? http_step(s->http, -1, 0, e) : 0;
    firecracker_hold_release(&s->hold);
    if (early < 0) {
        error_wrap(e, "PUT /snapshot/create");
        return early;
    }
    int ret = http_is_busy(s->http) ? finish_call(s, e) : 0;
    return !ret && early ? not_held(e) : ret;
}

/* Whatever hint there was: a guest that stands still comes first. */
static void hint_paused(struct error *e)
{
    if (e)
        e->hint[0] = '\0';
    error_hint(e, "the guest may be paused: look with GET / and send PATCH /vm "
                  "{\"state\": \"Resumed\"} to the API socket");
}

static int continue_vm(struct source_firecracker *s, struct error *e)
{
    struct source_control *c = &s->c;
    if (!atomic_load(&c->shared->stopped_by_us))
        return 0;
    TESTHOOK_POINT("source-before-cont");
    c->cont_sent_ns = clock_monotonic_ns();
    int ret = firecracker_set_state(s->http, "Resumed", c->base.timeout_ms, e);
    if (ret) {
        error_wrap(e, "resuming the guest");
        hint_paused(e);
        return ret;
    }
    c->running_ns = clock_monotonic_ns();
    atomic_store(&c->shared->stopped_by_us, false);
    TESTHOOK_POINT("source-after-cont");
    return 0;
}

int source_firecracker_resume(struct source *base, struct error *e)
{
    struct source_firecracker *s = source_firecracker_of(base);
    struct error problem = {0};
    int released = release(s, &problem);
    int ret = continue_vm(s, e);
    if (!ret && released) {
        if (e) {
            enum guest_state guest = e->guest;
            *e = problem;
            e->guest = guest;
        }
        ret = released;
    }
    return ret;
}

/* ---- after the worker's death ---- */

/* The state is asked for again, since one that is told may be that of before a late request. */
static int try_to_run(struct source_firecracker *s, uint64_t until_ns, struct error *e)
{
    struct firecracker_info info;
    int ret = firecracker_get_info(s->http, clock_ms_until(until_ns), &info, e);
    if (!ret && info.state == FIRECRACKER_RUNNING) {
        usleep(SETTLE_MS * 1000);
        ret = firecracker_get_info(s->http, clock_ms_until(until_ns), &info, e);
    }
    if (!ret && info.state == FIRECRACKER_PAUSED) {
        ret = firecracker_set_state(s->http, "Resumed", clock_ms_until(until_ns), e);
        if (!ret)
            ret = firecracker_get_info(s->http, clock_ms_until(until_ns), &info, e);
    }
    if (!ret && info.state != FIRECRACKER_RUNNING)
        ret = error_set(e, VMSNAP_EXIT_FAILED, EBUSY, "the VM does not run");
    return ret;
}

/* An answer that makes no sense, or none, need not be the last: asks for as long as the guest's
 * patience goes, and the VMM lives. */
static int make_run(struct source_firecracker *s, uint64_t until_ns, struct error *e)
{
    for (;;) {
        *e = (struct error){.guest = e->guest};
        int ret = try_to_run(s, until_ns, e);
        if (!ret || !target_alive(&s->c.base.target) || clock_monotonic_ns() >= until_ns)
            return ret;
        log_debug("the guest does not run yet: %s", e->message);
        usleep(ASK_AGAIN_MS * 1000);
    }
}

int source_firecracker_resume_after_death(struct source *base, struct error *e)
{
    struct source_firecracker *s = source_firecracker_of(base);
    uint64_t until_ns = clock_monotonic_ns() + (uint64_t)patience_ms(base) * 1000000u;
    firecracker_hold_release(&s->hold);
    if (!atomic_load(&s->c.shared->stopped_by_us))
        return 1;
    int ret = make_run(s, until_ns, e);
    if (ret) {
        error_wrap(e, "resuming the guest after vmsnap's death");
        hint_paused(e);
    } else
        atomic_store(&s->c.shared->stopped_by_us, false);
    return ret;
}

/* The reader stays open until the API thread answers, so that the call which was held is over. */
void source_firecracker_let_go(struct source_firecracker *s)
{
    struct firecracker_info info;
    struct error ignored;
    firecracker_hold_release(&s->hold);
    if (s->hold.reader_fd >= 0)
        firecracker_get_info(s->http, LET_GO_MS, &info, &ignored);
    firecracker_hold_close(&s->hold);
}
