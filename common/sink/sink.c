/*
 * sink.c - the front of a sink: buffers, back-pressure, the I/O thread's loop.
 *
 * Appenders copy into the current 1 MiB buffer and close it when it is full (sink/append.c). The
 * I/O thread takes closed buffers in order, starts their writes (several in flight where the end
 * can do that) and puts them back on the free stack when they are written. It sleeps in poll() on
 * an eventfd that filled buffers, completions and cancels all signal, so no wake-up is lost and no
 * lock is held while it waits.
 *
 * A limit on the rate is kept by handing buffers over earlier, a fortieth of a second's worth each,
 * and by starting no write before its time has come.
 *
 * The thread lives until the first of: all is published, a failure, a cancel. A failure is kept in
 * one atomic and ends every append at once; nothing is retried. The thread waits in poll() only: a
 * pipe is written without blocking, a file by a process of its own (sink/writer.h), which may hang
 * in the kernel for good (a dead NFS server, a frozen file system) without holding anybody up. The
 * one exception is giving a finished file its name. Closing waits a grace period for either, then
 * leaves it behind.
 */
#include "common/sink/internal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/publish.h"
#include "common/thread.h"

#define CLOSE_GRACE_NS 1000000000ull
#define LOOK_NS 50000000u
/* With a limit on the rate: buffers are handed over at so much of a second's bytes. */
#define PACE_PER_S 40u
#define PACE_ALIGN 4096u /* what O_DIRECT needs */

void sink_wake(struct sink *s)
{
    eventfd_write(s->event_fd, 1); /* EAGAIN (the counter is full) also means it will wake up */
}

/* Notes the first failure and ends all waits. Caller holds s->lock. */
static void fail_locked(struct sink *s, int r, const char *step, uint64_t offset)
{
    if (sink_failure(s) == 0) {
        s->failed_step = step;
        s->failed_offset = offset;
        atomic_store_explicit(&s->failure, r, memory_order_release);
    }
    pthread_cond_broadcast(&s->changed);
}

static void fail(struct sink *s, int r, const char *step, uint64_t offset)
{
    pthread_mutex_lock(&s->lock);
    fail_locked(s, r, step, offset);
    pthread_mutex_unlock(&s->lock);
}

static void set_state(struct sink *s, enum sink_state state)
{
    pthread_mutex_lock(&s->lock);
    s->state = state;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

int sink_wait(struct sink *s, int fd, short events)
{
    return sink_wait_for(s, fd, events, -1);
}

int sink_wait_for(struct sink *s, int fd, short events, int timeout_ms)
{
    struct pollfd fds[2] = {{.fd = s->event_fd, .events = POLLIN}, {.fd = fd, .events = events}};
    s->lap_ns = stage_lap(&s->stages.busy, s->lap_ns, 0);
    int n = poll(fds, 2, timeout_ms);
    int err = errno;
    s->lap_ns = stage_lap(s->wait_for, s->lap_ns, 0);
    if (n < 0)
        return err == EINTR ? 0 : -err;
    eventfd_t count;
    if (fds[0].revents & POLLIN)
        eventfd_read(s->event_fd, &count);
    return fds[1].revents != 0;
}

/* ---- the I/O thread ---- */

static void give_back(struct sink *s, struct sink_buffer *b)
{
    pthread_mutex_lock(&s->lock);
    b->used_bytes = 0;
    s->free[s->n_free++] = b;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

/* Takes back what has been written. Returns -errno only when completions can't be had any more. */
static int reap_all(struct sink *s)
{
    while (s->in_flight > 0) {
        struct sink_buffer *b = NULL;
        int r = s->ops->reap(s, &b);
        if (r < 0)
            fail(s, r, "writing", b ? b->offset : sink_offset(s));
        if (!b)
            return r;
        s->in_flight--;
        stage_lap(&s->stages.in_flight, b->started_ns, b->used_bytes);
        give_back(s, b);
    }
    return 0;
}

/* *last: there is none, and there will be none. */
static struct sink_buffer *next_filled(struct sink *s, bool *last)
{
    struct sink_buffer *b = NULL;
    pthread_mutex_lock(&s->lock);
    *last = s->state == SINK_COMMITTING && s->n_filled == 0;
    if (s->n_filled > 0 && s->in_flight < s->depth &&
        atomic_load_explicit(&s->filled[s->first_filled]->owed, memory_order_acquire) == 0) {
        b = s->filled[s->first_filled];
        s->first_filled = (s->first_filled + 1) % s->n_buffers;
        s->n_filled--;
    }
    pthread_mutex_unlock(&s->lock);
    return b;
}

/* How long the limit holds the next write back; 0 without one. */
static int held_back_ms(const struct sink *s)
{
    return (int)((pace_wait_ns(&s->pace, clock_monotonic_ns()) + 999999) / 1000000);
}

static void start_write(struct sink *s, struct sink_buffer *b)
{
    b->started_ns = clock_monotonic_ns();
    pace_charge(&s->pace, b->started_ns, b->used_bytes);
    unsigned depth = s->in_flight + 1;
    if (depth > atomic_load_explicit(&s->stages.deepest, memory_order_relaxed))
        atomic_store_explicit(&s->stages.deepest, depth, memory_order_relaxed);
    s->wait_for = &s->stages.waiting;
    int r = s->ops->write(s, b);
    if (r == 0) {
        s->in_flight++;
        return;
    }
    if (r < 0)
        fail(s, r, "writing", b->offset);
    stage_lap(&s->stages.in_flight, b->started_ns, b->used_bytes);
    give_back(s, b);
}

/* From "written" to "published", unless a cancel came first. */
static void finish(struct sink *s)
{
    int r = s->ops->flush(s);
    if (r < 0) {
        fail(s, r, "flushing", sink_offset(s));
        return;
    }
    pthread_mutex_lock(&s->lock);
    bool cancelled = sink_failure(s) != 0;
    if (!cancelled)
        s->state = SINK_PUBLISHING;
    pthread_mutex_unlock(&s->lock);
    if (cancelled)
        return;
    if (s->ops->publish) {
        r = s->ops->publish(s, &s->publish_error);
        if (r < 0) {
            fail(s, r, NULL, 0);
            return;
        }
    }
    set_state(s, SINK_DONE);
}

/* Waits for a reply, at most that long (-1: no limit). One that comes when none is owed is the end
 * of whoever writes: it would keep every later wait from being one. */
static void await_reply(struct sink *s, int timeout_ms)
{
    if (sink_wait_for(s, s->reply_fd, POLLIN, timeout_ms) > 0 && s->in_flight == 0)
        fail(s, -EOWNERDEAD, "writing", sink_offset(s));
}

static void run_io(struct sink *s)
{
    while (sink_failure(s) == 0) {
        bool last;
        if (reap_all(s) < 0)
            return;
        int held_ms = held_back_ms(s);
        if (held_ms > 0) {
            s->wait_for = &s->stages.held_back;
            await_reply(s, held_ms);
            continue;
        }
        struct sink_buffer *b = next_filled(s, &last);
        if (b) {
            start_write(s, b);
        } else if (last && s->in_flight == 0) {
            s->wait_for = &s->stages.waiting;
            finish(s);
            return;
        } else {
            s->wait_for = s->in_flight ? &s->stages.waiting : &s->stages.idle;
            await_reply(s, -1);
        }
    }
}

static void *io_thread(void *opaque)
{
    struct sink *s = opaque;
    atomic_store(&s->tid, gettid());
    s->lap_ns = clock_monotonic_ns();
    run_io(s);
    pthread_mutex_lock(&s->lock);
    s->ended = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* ---- what is asked from outside ---- */

uint64_t sink_buffer_bytes(const struct sink *s)
{
    return (uint64_t)s->n_buffers * SINK_BUFFER_BYTES;
}

uint64_t sink_offset(const struct sink *s)
{
    return atomic_load_explicit(&s->offset, memory_order_relaxed);
}

const struct sink_stages *sink_stages(const struct sink *s)
{
    return &s->stages;
}

int sink_error(const struct sink *s, struct error *e)
{
    int r = sink_failure(s);
    if (r == 0 || !e)
        return r;
    if (!s->failed_step) {
        e->exit_code = s->publish_error.exit_code;
        e->err = s->publish_error.err;
        memcpy(e->message, s->publish_error.message, sizeof(e->message));
        memcpy(e->hint, s->publish_error.hint, sizeof(e->hint));
        return r;
    }
    error_set(e, publish_exit_code(-r), -r, "%s %s at byte %llu", s->failed_step, s->name,
              (unsigned long long)s->failed_offset);
    if (e->exit_code == VMSNAP_EXIT_NO_SPACE)
        error_hint(e, "make room there, or write to another file system; nothing was published");
    else if (r == -EOWNERDEAD)
        error_hint(e, "the process that writes the file was killed, by the host's lack of memory "
                      "perhaps (dmesg tells); nothing was published");
    else if (r == -EPIPE)
        error_hint(e, "the reader of the pipe has ended; see what it says");
    else
        publish_hint(e);
    return r;
}

int sink_commit(struct sink *s, struct error *e)
{
    pthread_mutex_lock(&s->append_lock);
    if (s->current)
        sink_close_current(s);
    s->complete = true;
    set_state(s, SINK_COMMITTING);
    pthread_mutex_unlock(&s->append_lock);
    sink_wake(s);

    pthread_mutex_lock(&s->lock);
    while (s->state != SINK_DONE && sink_failure(s) == 0)
        pthread_cond_wait(&s->changed, &s->lock);
    pthread_mutex_unlock(&s->lock);
    return sink_error(s, e);
}

/* ---- life ---- */

void sink_cancel(struct sink *s)
{
    pthread_mutex_lock(&s->lock);
    if (s->state == SINK_OPEN || s->state == SINK_COMMITTING)
        fail_locked(s, -ECANCELED, "writing", sink_offset(s));
    pthread_mutex_unlock(&s->lock);
    sink_wake(s);
}

const char *sink_temporary_path(const struct sink *s)
{
    return s->temporary_path;
}

static int free_sink(struct sink *s)
{
    int r = s->ops->close(s);
    if (s->event_fd >= 0)
        close(s->event_fd);
    if (s->arena)
        munmap(s->arena, (size_t)s->n_buffers * SINK_BUFFER_BYTES);
    pthread_mutex_destroy(&s->append_lock);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->changed);
    free(s->buffers);
    free(s->free);
    free(s->filled);
    free(s->name);
    free(s);
    return r;
}

/* Whether the I/O thread comes to its end by then. */
static bool thread_ends_until(struct sink *s, uint64_t until_ns)
{
    const struct timespec deadline = {.tv_sec = (time_t)(until_ns / 1000000000u),
                                      .tv_nsec = (long)(until_ns % 1000000000u)};
    int r = 0;
    pthread_mutex_lock(&s->lock);
    while (!s->ended && r != ETIMEDOUT)
        r = pthread_cond_timedwait(&s->changed, &s->lock, &deadline);
    bool ended = s->ended;
    pthread_mutex_unlock(&s->lock);
    return ended;
}

/* Within the grace period; or later, if it only gets no CPU for it. */
static bool thread_ends(struct sink *s)
{
    uint64_t now = clock_monotonic_ns();
    uint64_t last_ns = now + THREAD_STARVED_MS * 1000000ull;
    bool ended = thread_ends_until(s, now + CLOSE_GRACE_NS);
    for (int asleep = 0; !ended && asleep < 2 && now < last_ns; now = clock_monotonic_ns()) {
        int tid = atomic_load(&s->tid);
        ended = thread_ends_until(s, now + LOOK_NS);
        asleep = !tid || thread_is_starved(tid) ? 0 : asleep + 1;
    }
    return ended;
}

int sink_close(struct sink *s)
{
    if (!s)
        return 0;
    sink_cancel(s);
    if (!thread_ends(s)) {
        pthread_detach(s->thread);
        return -EBUSY;
    }
    pthread_join(s->thread, NULL);
    return free_sink(s);
}

static int allocate_buffers(struct sink *s, unsigned n)
{
    s->n_buffers = n;
    s->buffers = calloc(n, sizeof(*s->buffers));
    s->free = calloc(n, sizeof(*s->free));
    s->filled = calloc(n, sizeof(*s->filled));
    void *arena = mmap(NULL, (size_t)n * SINK_BUFFER_BYTES, PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (arena == MAP_FAILED || !s->buffers || !s->free || !s->filled) {
        if (arena != MAP_FAILED)
            munmap(arena, (size_t)n * SINK_BUFFER_BYTES);
        return -ENOMEM;
    }
    s->arena = arena;
    for (unsigned i = 0; i < n; i++) {
        s->buffers[i].data = s->arena + (size_t)i * SINK_BUFFER_BYTES;
        s->free[s->n_free++] = &s->buffers[i];
    }
    return 0;
}

static int start_thread(struct sink *s)
{
    s->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->event_fd < 0)
        return -errno;
    return thread_start(&s->thread, io_thread, s);
}

static size_t choose_fill(uint64_t bytes_per_s)
{
    uint64_t bytes = bytes_per_s / PACE_PER_S / PACE_ALIGN * PACE_ALIGN;
    if (bytes_per_s == 0 || bytes > SINK_BUFFER_BYTES)
        return SINK_BUFFER_BYTES;
    return bytes > PACE_ALIGN ? (size_t)bytes : PACE_ALIGN;
}

/* A condition whose deadlines are clock_monotonic_ns(). */
static void init_condition(pthread_cond_t *condition)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
}

int sink_start(struct sink **out, const struct sink_ops *ops, void *end, const char *name,
               const char *temporary_path, unsigned depth, const struct sink_options *options,
               struct error *e)
{
    struct sink *s = calloc(1, sizeof(*s));
    if (!s) {
        struct sink only_end = {.end = end};
        ops->close(&only_end);
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "writing %s", name);
    }
    *s = (struct sink){.ops = ops,
                       .end = end,
                       .temporary_path = temporary_path,
                       .depth = depth,
                       .pace = {.bytes_per_s = options->bytes_per_s},
                       .fill_bytes = choose_fill(options->bytes_per_s),
                       .event_fd = -1,
                       .reply_fd = -1,
                       .append_lock = PTHREAD_MUTEX_INITIALIZER,
                       .lock = PTHREAD_MUTEX_INITIALIZER};
    init_condition(&s->changed);
    s->name = strdup(name);
    int r = s->name ? 0 : -ENOMEM;
    if (r == 0 && (options->n_buffers < SINK_MIN_BUFFERS ||
                   (options->bytes_per_s && options->bytes_per_s < SINK_MIN_RATE)))
        r = -EINVAL;
    if (r == 0)
        r = allocate_buffers(s, options->n_buffers);
    if (r == 0 && ops->start)
        r = ops->start(s);
    if (r == 0)
        r = start_thread(s);
    if (r < 0) {
        error_set(e, VMSNAP_EXIT_FAILED, -r, "getting ready to write %s", name);
        free_sink(s);
        return r;
    }
    *out = s;
    return 0;
}
