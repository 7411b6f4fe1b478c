#include "restore/clock_sync.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/json_text.h"
#include "common/log.h"
#include "common/qemu/agent.h"
#include "common/thread.h"

struct clock_sync {
    pthread_mutex_t lock; /* for closing `fd`: the agent takes one client at a time */
    int fd;               /* -1: none, or closed */
    uint64_t began_ns, deadline_ns;
    pthread_t thread;
    bool joinable, lost;
    atomic_bool over; /* what is below may be read once it is set */
    bool measured;
    struct agent_clock clock;
    uint64_t took_ns;
    struct error error; /* exit_code 0: it is set */
};

static void close_agent(struct clock_sync *s)
{
    pthread_mutex_lock(&s->lock);
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
    pthread_mutex_unlock(&s->lock);
}

static void *run_sync(void *opaque)
{
    struct clock_sync *s = opaque;
    if (s->fd >= 0) {
        int rc = agent_set_clock(s->fd, s->deadline_ns, &s->clock, &s->error);
        s->measured = rc == 0 || rc == -ERANGE;
        close_agent(s);
    }
    s->took_ns = clock_monotonic_ns() - s->began_ns;
    if (s->error.exit_code)
        log_warn("the guest's clock is not set: %s%s%s", s->error.message,
                 s->error.hint[0] ? "; " : "", s->error.hint);
    atomic_store(&s->over, true);
    return NULL;
}

struct clock_sync *clock_sync_start(int fd, int timeout_ms, const struct error *why)
{
    struct clock_sync *s = calloc(1, sizeof(*s));
    if (!s)
        return NULL;
    s->fd = fd;
    pthread_mutex_init(&s->lock, NULL);
    s->began_ns = clock_monotonic_ns();
    s->deadline_ns = s->began_ns + (uint64_t)timeout_ms * 1000000u;
    if (fd < 0)
        s->error = *why;
    int rc = fd >= 0 ? thread_start(&s->thread, run_sync, s) : 0;
    s->joinable = fd >= 0 && rc == 0;
    if (rc) {
        error_set(&s->error, VMSNAP_EXIT_FAILED, -rc, "can't start a thread");
        close_agent(s);
    }
    if (!s->joinable)
        run_sync(s);
    return s;
}

struct clock_sync *clock_sync_inherit(const struct clock_outcome *outcome)
{
    struct clock_sync *s = calloc(1, sizeof(*s));
    if (!s)
        return NULL;
    s->fd = -1;
    pthread_mutex_init(&s->lock, NULL);
    s->lost = !outcome || !outcome->known;
    if (s->lost) {
        error_set(&s->error, VMSNAP_EXIT_FAILED, 0,
                  "the server that was to do it has died, perhaps after it had done it");
    } else {
        s->measured = outcome->measured;
        s->clock.behind_ns = outcome->difference_ns;
        s->took_ns = outcome->took_ns;
        if (!outcome->synced)
            error_set(&s->error, VMSNAP_EXIT_FAILED, 0, "a server before this one could not do it");
    }
    atomic_store(&s->over, true);
    return s;
}

struct clock_outcome clock_sync_outcome(const struct clock_sync *s)
{
    return (struct clock_outcome){.known = !s->lost,
                                  .synced = s->error.exit_code == 0,
                                  .measured = s->measured,
                                  .difference_ns = s->clock.behind_ns,
                                  .took_ns = s->took_ns};
}

static json_t *number_or_null(bool known, int64_t n)
{
    return known ? json_integer(n) : json_null();
}

bool clock_sync_is_over(const struct clock_sync *s)
{
    return s && atomic_load(&s->over);
}

static void join(struct clock_sync *s)
{
    if (s->joinable)
        pthread_join(s->thread, NULL);
    s->joinable = false;
}

void clock_sync_add(struct clock_sync *s, json_t *object)
{
    if (!s)
        return;
    join(s);
    bool good = s->error.exit_code == 0;
    json_object_set_new(object, "clock_synced", s->lost ? json_null() : json_boolean(good));
    json_object_set_new(object, "clock_difference_ns",
                        number_or_null(s->measured, s->clock.behind_ns));
    json_object_set_new(object, "clock_sync_ns", number_or_null(!s->lost, (int64_t)s->took_ns));
    json_t *warnings = json_array();
    if (!good)
        json_array_append_new(warnings, json_printed("the guest's clock is %s: %s",
                                                     s->lost ? "perhaps not set" : "not set",
                                                     s->error.message));
    json_object_set_new(object, "warnings", warnings);
}

void clock_sync_end(struct clock_sync *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    if (s->fd >= 0)
        shutdown(s->fd, SHUT_RDWR);
    pthread_mutex_unlock(&s->lock);
    join(s);
    pthread_mutex_destroy(&s->lock);
    free(s);
}
