/*
 * serve.c - the fault thread. It alone reads the userfaultfd and it alone installs. That makes the
 * rule about discards (a page that the guest gave back must not return) hold without a lock: no
 * event is ever read between a look at the marks and the ioctl that acts on it, and while an event
 * is unread the kernel refuses the ioctl with EAGAIN.
 *
 * In each turn:
 *   1. read messages; note discards at once, put faults into `waiting`;
 *   2. answer what waits: decode the cluster, install all of it, wake. A fault that got EAGAIN
 *      stays; one whose cluster is not in the page cache, or that is one of a crowd, is parked
 *      until a demand thread has it (waiting.h, demand.h);
 *   3. only if none waits but for a job, install one job of the fill workers (at most 64 KiB, about
 *      21 us; a huge page where the memory is made of those), first what lies ahead of a guest that
 *      reads in order, and what a fault waits for;
 *   4. with nothing to do, go on reading for a while after the last fault (linger.h), then sleep.
 *
 * A fault in a damaged cluster is never answered: the guest waits, which it can survive, rather
 * than reads a wrong byte. Or, where that was asked for, its pages are poisoned.
 */
#include "restore/serve/serve.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/testhook.h"
#include "common/thread.h"
#include "common/uffd.h"
#include "restore/decode/fill.h"
#include "restore/memory/handoff.h"
#include "restore/serve/answer.h"
#include "restore/serve/fetched.h"
#include "restore/serve/inbox.h"
#include "restore/serve/linger.h"
#include "restore/serve/waiting.h"

#define RETRY_NO_ROOM_NS 50000000u
#define RETRY_EVENT_NS 30000u
#define SERVER_NICE (-10)
#define QUEUE_BYTES (4u << 20)
#define NUDGE SIGUSR2
#define NUDGE_AFTER_NS 50000000

struct server {
    struct server_config config;
    struct answerer answerer;
    struct queue queue;
    struct ahead ahead;
    _Atomic(struct fill *) fill;
    pthread_t thread;
    bool thread_started;

    struct waiting waiting;
    bool hurried; /* the workers were told */
    bool has_job; /* a job that got EAGAIN and must be tried again */
    uint32_t job_slot;
    struct fetched fetched; /* how clusters are had, and who has them elsewhere */
    struct linger linger;
    struct inbox inbox;
    struct handoff_release release; /* server_release(): how far it is */

    struct trouble_list troubles;
    int event_fd;
    struct serve_stages stages;
    atomic_int stage;        /* enum server_stage */
    atomic_bool guest_waits; /* as of when it last went to sleep */
    atomic_bool prefetched, all_queued, release_wanted, stop;
};

static void notify(struct server *s)
{
    uint64_t one = 1;
    ssize_t n = write(s->event_fd, &one, sizeof(one));
    (void)n; /* full: readable already */
}

static void set_stage(struct server *s, enum server_stage stage)
{
    atomic_store(&s->stage, (int)stage);
    notify(s);
}

/* ---- faults ---- */

static void tell_workers(struct server *s, bool hurry)
{
    struct fill *fill = atomic_load(&s->fill);
    if (fill)
        fill_hurry(fill, hurry);
}

/* A worker that has lost its CPU in the middle of what a fault waits for must get it back. */
static void hurry_workers(struct server *s)
{
    bool hurry = s->waiting.n_behind > 0;
    queue_await(&s->queue, hurry);
    if (hurry == s->hurried || !atomic_load(&s->fill))
        return;
    tell_workers(s, hurry);
    s->hurried = hurry;
}

/* Answers what waits. True when something is kept for want of room. */
static bool answer_waiting(struct server *s)
{
    if (s->waiting.n == 0)
        return false;
    uint64_t began_ns = clock_monotonic_ns();
    bool no_room = waiting_answer(&s->waiting, &s->answerer);
    hurry_workers(s);
    stage_lap(&s->stages.answering, began_ns, 0);
    return no_room;
}

/* ---- the workers' jobs ---- */

/* Installs one job if there is one. *no_room: it could not. False: there is none. */
static bool install_next_job(struct server *s, bool *no_room)
{
    if (!s->has_job && !queue_next(&s->queue, &s->job_slot))
        return false;
    const struct job *job = &s->queue.jobs[s->job_slot];
    bool punches = answer_job_punches(&s->answerer, job);
    if (punches) /* that takes a lock which one of them may hold, without a CPU */
        tell_workers(s, true);
    uint64_t began_ns = clock_monotonic_ns();
    enum answer answer = answer_job(&s->answerer, job, queue_buffer(&s->queue, s->job_slot));
    stage_lap(&s->stages.installing, began_ns, (uint64_t)job->n_clusters * IMAGE_CLUSTER_BYTES);
    if (punches)
        tell_workers(s, s->hurried);
    s->has_job = answer == AGAIN_EVENT || answer == AGAIN_ROOM || answer == AGAIN_JOB;
    *no_room |= answer == AGAIN_ROOM;
    if (!s->has_job)
        queue_release(&s->queue, s->job_slot);
    return true;
}

/* ---- the end ---- */

/* What there is to do when neither faults nor jobs wait. True: it did something. */
static bool advance_stage(struct server *s)
{
    switch (server_stage(s)) {
    case SERVER_FILLING:
        if (!atomic_load(&s->all_queued) || s->has_job || demand_under_way(s->fetched.demand) > 0)
            return false;
        /* Submitted before all_queued was set: one may have come in since we looked. */
        if (queue_next(&s->queue, &s->job_slot)) {
            s->has_job = true;
            return true;
        }
        set_stage(s, answerer_is_all_in(&s->answerer) ? SERVER_FILLED : SERVER_INCOMPLETE);
        return true;
    case SERVER_INCOMPLETE:
        if (!fetched_read_again(&s->fetched))
            return false;
        if (answerer_is_all_in(&s->answerer))
            set_stage(s, SERVER_FILLED);
        return true;
    case SERVER_FILLED:
        if (!atomic_load(&s->release_wanted))
            return false;
        if (!handoff_release_piece(&s->release, s->config.uffd, s->config.blocks))
            set_stage(s, SERVER_RELEASED);
        return true;
    default:
        return false;
    }
}

static void note_waiting(struct server *s, uint64_t now_ns)
{
    bool waits = s->answerer.guest_waits || waiting_is_long(&s->waiting, now_ns);
    atomic_store_explicit(&s->guest_waits, waits, memory_order_relaxed);
}

/* Sleeps until a message or a job comes, or until timeout_ns have passed (0: without end). */
static void sleep_for_more(struct server *s, uint32_t timeout_ns)
{
    struct pollfd fds[2] = {{.fd = s->config.uffd, .events = POLLIN},
                            {.fd = s->queue.wake_fd, .events = POLLIN}};
    const struct timespec timeout = {.tv_nsec = (long)timeout_ns};
    uint64_t began_ns = clock_monotonic_ns();
    note_waiting(s, began_ns);
    ppoll(fds, 2, timeout_ns ? &timeout : NULL, NULL);
    if (fds[1].revents) /* a command may come while something is tried again */
        queue_clear_wake(&s->queue);
    /* A fault that came meanwhile has waited since the wakeup, not since we went to sleep. */
    s->inbox.last_empty_ns = stage_lap(&s->stages.asleep, began_ns, 0);
}

/* Sleeps until a message, a job or a command comes. */
static void sleep_until_work(struct server *s)
{
    linger_sleeps(&s->linger);
    queue_sleep_begin(&s->queue);
    bool job = queue_next(&s->queue, &s->job_slot);
    bool fetched = fetched_look(&s->fetched);
    s->has_job |= job;
    bool timed = fetched_is_timed(&s->fetched);
    bool command = atomic_load(&s->stop) ||
                   (server_stage(s) == SERVER_FILLING && atomic_load(&s->all_queued) &&
                    demand_under_way(s->fetched.demand) == 0) ||
                   (server_stage(s) == SERVER_FILLED && atomic_load(&s->release_wanted));
    if (!job && !fetched && !command)
        sleep_for_more(s, timed ? FETCHED_LOOK_NS : 0);
    queue_sleep_end(&s->queue);
}

/*
 * Something must be tried again. After an event was read, the thread that caused it has to get its
 * turn before the kernel lets us install. Yielding would not see to that: we run at a higher
 * priority than it does.
 */
static void wait_to_retry(struct server *s, bool no_room)
{
    sleep_for_more(s, no_room ? RETRY_NO_ROOM_NS : RETRY_EVENT_NS);
}

/* What others have read, however many faults come, and what waits. False: some of it is left. */
static bool answer_all(struct server *s, bool *no_room)
{
    bool installed = fetched_install(&s->fetched, no_room);
    *no_room |= answer_waiting(s);
    return installed;
}

/* One turn without a new message. */
static void turn_without_message(struct server *s)
{
    bool no_room = false;
    bool installed = answer_all(s, &no_room);
    if (s->waiting.n > s->waiting.n_behind || !installed) {
        wait_to_retry(s, no_room);
        return;
    }
    if (fetched_help(&s->fetched))
        return;
    if (install_next_job(s, &no_room)) {
        if (s->has_job)
            wait_to_retry(s, no_room);
        return;
    }
    if (advance_stage(s))
        return;
    if (s->inbox.last_empty_ns > s->waiting.last_ns + linger_ns(&s->linger))
        sleep_until_work(s);
}

static void do_nothing(int number)
{
    (void)number;
}

/* Whether a read of the userfaultfd waits is the VMM's to say as well, if that one is its own: the
 * flag lies in what both have open. Then only a signal ends it. */
static void take_nudges(void)
{
    struct sigaction action = {.sa_handler = do_nothing};
    sigset_t nudge;
    sigemptyset(&action.sa_mask);
    sigaction(NUDGE, &action, NULL);
    sigemptyset(&nudge);
    sigaddset(&nudge, NUDGE);
    pthread_sigmask(SIG_UNBLOCK, &nudge, NULL);
}

static void *run_server(void *opaque)
{
    struct server *s = opaque;
    take_nudges();
    linger_begin(&s->linger);
    setpriority(PRIO_PROCESS, 0, SERVER_NICE); /* without the right to it: as it is */
    prctl(PR_SET_TIMERSLACK, 1000);            /* ns: short sleeps are to be short */
    if (s->config.takes_over)
        inbox_take_over(&s->inbox, s->config.blocks);
    while (!atomic_load_explicit(&s->stop, memory_order_relaxed)) {
        waiting_wake_forgotten(&s->waiting, s->config.uffd, s->config.blocks);
        if (inbox_read(&s->inbox) > 0)
            answer_all(s, &(bool){false});
        else
            turn_without_message(s);
    }
    linger_end(&s->linger);
    return NULL;
}

/* ---- control, from the main thread ---- */

static void on_prefetched(void *opaque)
{
    struct server *s = opaque;
    atomic_store(&s->prefetched, true);
    notify(s);
}

static void on_all_queued(void *opaque)
{
    struct server *s = opaque;
    atomic_store(&s->all_queued, true);
    queue_wake(&s->queue);
}

static int init_server(struct server *s)
{
    uint64_t slot = fill_slot_bytes(s->config.blocks);
    uint64_t n_slots = QUEUE_BYTES / slot > 4 ? QUEUE_BYTES / slot : 4;
    s->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->event_fd < 0)
        return -errno;
    trouble_init(&s->troubles, s->event_fd);
    const struct intake_config intake = {.img = s->config.img,
                                         .blocks = s->config.blocks,
                                         .troubles = &s->troubles,
                                         .n_threads = s->config.n_threads + DEMAND_THREADS};
    s->waiting.crowd = s->config.crowd ? s->config.crowd : WAITING_CROWD;
    s->fetched = (struct fetched){.answerer = &s->answerer, .waiting = &s->waiting};
    int rc = fetched_start(&s->fetched, &intake, &s->queue);
    if (rc)
        return rc;
    s->answerer = (struct answerer){.target = s->config.target,
                                    .img = s->config.img,
                                    .blocks = s->config.blocks,
                                    .state = s->config.state,
                                    .troubles = &s->troubles,
                                    .intake = s->fetched.intake,
                                    .demand = s->fetched.demand,
                                    .untold = s->config.untold,
                                    .poisons = s->config.poison_damage,
                                    .ahead = &s->ahead,
                                    .learn = s->config.learn};
    rc = answerer_init(&s->answerer, s->config.uffd);
    if (rc == 0)
        rc = ahead_init(&s->ahead);
    if (rc == 0)
        rc = queue_init(&s->queue, (uint32_t)n_slots, slot);
    if (rc == 0 && s->config.takes_over)
        rc = install_forget_begun(s->config.blocks, s->config.state);
    if (rc == 0)
        rc = thread_start(&s->thread, run_server, s);
    s->thread_started = rc == 0;
    return rc;
}

int server_start(struct server **out, const struct server_config *config, struct error *e)
{
    struct server *s = calloc(1, sizeof(*s));
    if (!s) {
        close(config->uffd);
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "no memory for the server of page faults");
    }
    s->config = *config;
    s->config.n_threads = fill_choose_threads(config->n_threads);
    s->queue.wake_fd = -1;
    s->inbox = (struct inbox){.uffd = config->uffd,
                              .messages = config->messages,
                              .waiting = &s->waiting,
                              .answerer = &s->answerer,
                              .linger = &s->linger,
                              .last_empty_ns = clock_monotonic_ns()};
    int rc = init_server(s);
    if (rc) {
        server_stop(s);
        return error_set(e, VMSNAP_EXIT_FAILED, -rc, "the server of page faults can't start");
    }
    *out = s;
    return 0;
}

int server_begin_prefetch(struct server *s, struct error *e)
{
    struct fill_config config = {
        .img = s->config.img,
        .intake = s->fetched.intake,
        .blocks = s->config.blocks,
        .state = s->config.state,
        .queue = &s->queue,
        .ahead = &s->ahead,
        .prefetch = s->config.prefetch,
        .n_threads = s->config.n_threads,
        .bytes_per_s = s->config.bytes_per_s,
        .prefetched = on_prefetched,
        .finished = on_all_queued,
        .opaque = s,
    };
    struct fill *fill;
    int rc = fill_start(&fill, &config);
    if (rc)
        return error_set(e, VMSNAP_EXIT_FAILED, -rc, "the fill threads can't start");
    atomic_store(&s->fill, fill);
    return 0;
}

void server_begin_fill(struct server *s)
{
    if (!s->config.fill)
        return;
    ahead_turn_on(&s->ahead);
    fill_allow_all(s->fill);
}

int server_event_fd(const struct server *s)
{
    return s->event_fd;
}

void server_clear_event(struct server *s)
{
    uint64_t n;
    ssize_t got = read(s->event_fd, &n, sizeof(n));
    (void)got;
}

enum server_stage server_stage(const struct server *s)
{
    return (enum server_stage)atomic_load(&s->stage);
}

bool server_prefetched(const struct server *s)
{
    return atomic_load(&s->prefetched);
}

bool server_needs_image(const struct server *s)
{
    return answerer_is_incomplete(&s->answerer) || fetched_is_failing(&s->fetched);
}

bool server_take_error(struct server *s, struct error *e)
{
    return trouble_take(&s->troubles, e);
}

void server_release(struct server *s)
{
    atomic_store(&s->release_wanted, true);
    queue_wake(&s->queue);
}

void server_get_stats(const struct server *s, struct server_stats *stats)
{
    *stats = (struct server_stats){.demand_faults = s->waiting.n_answered,
                                   .faults = s->waiting.times,
                                   .counts = s->answerer.counts,
                                   .guest_waits =
                                       s->answerer.guest_waits || atomic_load(&s->guest_waits),
                                   .stage = server_stage(s),
                                   .n_threads = s->config.n_threads,
                                   .serve = &s->stages,
                                   .fill = s->fill ? fill_stages(s->fill) : NULL};
}

static void join_server(struct server *s)
{
    for (;;) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += NUDGE_AFTER_NS;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        if (pthread_clockjoin_np(s->thread, NULL, CLOCK_MONOTONIC, &until) != ETIMEDOUT)
            return;
        pthread_kill(s->thread, NUDGE);
    }
}

void server_stop(struct server *s)
{
    if (!s)
        return;
    fetched_let_go(&s->fetched);
    if (s->thread_started) {
        atomic_store(&s->stop, true);
        queue_wake(&s->queue);
        join_server(s);
    }
    fill_stop(s->fill); /* now that nobody hurries them */
    fetched_stop(&s->fetched);
    queue_free(&s->queue);
    ahead_free(&s->ahead);
    answerer_free(&s->answerer);
    trouble_free(&s->troubles);
    if (s->event_fd >= 0)
        close(s->event_fd);
    close(s->config.uffd);
    free(s);
}
