#include "snapshot/watch.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/thread.h"
#include "snapshot/memory/arm.h"

#define TICK_MS 50
#define WATCH_PRIORITY 2 /* ahead of the fault thread, which may hang */
/* A write that waits so long waits for compressors that get no CPU. */
#define URGENT_NS 20000000u

/* An event of a shard that its fault thread has not read. */
struct unread {
    unsigned turn; /* of the thread's reads, when it was seen */
    uint64_t since_ns;
};

struct watch {
    struct capture *capture;
    const struct sink *sink;
    struct guardian_board *board;
    int stop_event;
    pthread_t thread;
    bool dropped;
    struct unread unread[SHARDS_MAX];
};

/* Frees the guest: whatever else happens to this snapshot, its writes wait no longer. */
static void drop_protection(struct watch *w, enum capture_failure why, int err)
{
    struct capture *c = w->capture;
    capture_fail(c, why, err, 0);
    w->dropped = true;
    arm_release(&c->map);
}

/* Since when an event waits in a shard without its fault thread reading any (it gets no CPU, or
 * hangs in the kernel): 0 if none does. */
static uint64_t unread_since(struct unread *u, struct shard *shard)
{
    struct pollfd p = {.fd = shard->uffd, .events = POLLIN};
    unsigned turn = atomic_load(&shard->events_turn);
    if (poll(&p, 1, 0) <= 0 || turn != u->turn)
        u->since_ns = 0;
    else if (!u->since_ns)
        u->since_ns = clock_monotonic_ns();
    u->turn = turn;
    return u->since_ns;
}

/* True if a write is held, or an event unread, for too long in any shard. We give way to the guest
 * (job_pause.c), but not to others when it waits for us: so each time that one is held for a while,
 * since that may have been so before we began to give way. */
static bool is_stalled(struct watch *w)
{
    struct capture *c = w->capture;
    uint64_t limit = (uint64_t)c->max_stall_ms * 1000000u;
    bool stalled = false;
    for (unsigned i = 0; i < c->n_shards; i++) {
        uint64_t held = atomic_load(&c->shards[i].held_since_ns);
        uint64_t unread = unread_since(&w->unread[i], &c->shards[i]);
        uint64_t now = clock_monotonic_ns();
        if (held && now > held + URGENT_NS)
            thread_session_nice(0);
        stalled |= (held && now > held + limit) || (unread && now > unread + limit);
    }
    return stalled;
}

static void look(struct watch *w)
{
    struct capture *c = w->capture;
    bool stalled = is_stalled(w);
    int err;
    atomic_fetch_add(&w->board->beat, 1);
    if (capture_failed(c)) {
        /* The main thread may be waiting for a VMM that waits for a write of its own. */
        if (!w->dropped)
            drop_protection(w, CAPTURE_CANCELLED, 0);
    } else if (stalled)
        drop_protection(w, CAPTURE_STALLED, 0);
    else if ((err = sink_error(w->sink, NULL)) || (err = encoder_error(c->encoder)))
        drop_protection(w, CAPTURE_OUTPUT, err);
    else if (!target_alive(c->target))
        capture_fail(c, CAPTURE_TARGET_GONE, -ESRCH, 0);
}

static void *watch_thread(void *opaque)
{
    struct watch *w = opaque;
    prctl(PR_SET_NAME, "vmsnap-watch");
    thread_go_first(WATCH_PRIORITY);
    struct pollfd fds[2] = {{.fd = w->stop_event, .events = POLLIN},
                            {.fd = w->capture->target->pidfd, .events = POLLIN}};
    do {
        look(w);
        if (fds[1].revents)
            fds[1].fd = -1; /* it has ended; seen once is enough */
        poll(fds, 2, TICK_MS);
    } while (!fds[0].revents);
    return NULL;
}

int watch_start(struct watch **out, struct capture *capture, const struct sink *sink,
                struct guardian_board *board, struct error *e)
{
    struct watch *w = calloc(1, sizeof(*w));
    int ret = w ? 0 : -ENOMEM;
    if (w) {
        *w = (struct watch){.capture = capture, .sink = sink, .board = board};
        w->stop_event = eventfd(0, EFD_CLOEXEC);
        ret = w->stop_event < 0 ? -errno : thread_start(&w->thread, watch_thread, w);
        if (ret && w->stop_event >= 0)
            close(w->stop_event);
    }
    if (ret) {
        free(w);
        return error_set(e, VMSNAP_EXIT_FAILED, -ret, "cannot start the watch thread");
    }
    *out = w;
    return 0;
}

void watch_stop(struct watch *w)
{
    if (!w)
        return;
    eventfd_write(w->stop_event, 1);
    pthread_join(w->thread, NULL);
    close(w->stop_event);
    free(w);
}
