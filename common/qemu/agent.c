/*
 * agent.c - see agent.h.
 *
 * The port may hold anything at first: half a request of whoever talked to the agent before the
 * snapshot, answers to him that he did not wait for. So the first thing sent is a byte 0xFF, at
 * which the agent forgets what it has read, and guest-sync-delimited, which it answers with a byte
 * 0xFF and a number of ours: all before that is thrown away (qga/qapi-schema.json in QEMU).
 *
 * The agent's own pages may have to come in first, so that the first answers are slow: the clock is
 * set again until it was read back in a short time and found right.
 */
#include "common/qemu/agent.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/json_text.h"
#include "common/log.h"

#define LINE_MAX_BYTES 16384u
#define DELIMITER 0xff
#define TRIES 4
#define GOOD_NS 50000000    /* not worth another try */
#define LIMIT_NS 1000000000 /* worse than this is a failure */

struct channel {
    int fd;
    uint64_t deadline_ns;
    size_t used;
    char buf[LINE_MAX_BYTES];
};

/* ---- bytes ---- */

static int silence(struct error *e)
{
    error_set(e, VMSNAP_EXIT_TIMEOUT, ETIMEDOUT, "the guest agent does not answer");
    error_hint(e, "is qemu-guest-agent installed in the guest, and running?");
    return -ETIMEDOUT;
}

static int await(const struct channel *c, short events, struct error *e)
{
    struct pollfd p = {.fd = c->fd, .events = events};
    int n = poll(&p, 1, clock_ms_until(c->deadline_ns));
    if (n > 0 || (n < 0 && errno == EINTR))
        return 0;
    return n == 0 ? silence(e)
                  : error_set(e, VMSNAP_EXIT_TARGET, errno, "waiting for the guest agent");
}

static int gone(struct error *e)
{
    return error_set(e, VMSNAP_EXIT_TARGET, EPIPE, "the VMM has closed the guest agent's port");
}

static int send_all(struct channel *c, const char *text, size_t len, struct error *e)
{
    while (len > 0) {
        ssize_t n = send(c->fd, text, len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0) {
            text += n;
            len -= (size_t)n;
            continue;
        }
        if (errno != EAGAIN && errno != EINTR)
            return gone(e);
        int rc = await(c, POLLOUT, e);
        if (rc)
            return rc;
    }
    return 0;
}

/* Takes the next line out of the buffer into `line`; false: there is none yet. */
static bool take_line(struct channel *c, char *line)
{
    char *end = memchr(c->buf, '\n', c->used);
    if (!end)
        return false;
    size_t len = (size_t)(end - c->buf);
    memcpy(line, c->buf, len);
    line[len] = '\0';
    memmove(c->buf, end + 1, c->used - len - 1);
    c->used -= len + 1;
    return true;
}

static int receive_line(struct channel *c, char *line, struct error *e)
{
    /* Looked at each time: a guest that never stops talking is not listened to for ever. */
    while (clock_monotonic_ns() < c->deadline_ns) {
        if (take_line(c, line))
            return 0;
        if (c->used == sizeof(c->buf))
            c->used = 0; /* too long for any answer to us */
        ssize_t n = recv(c->fd, c->buf + c->used, sizeof(c->buf) - c->used, MSG_DONTWAIT);
        if (n > 0) {
            c->used += (size_t)n;
            continue;
        }
        if (n == 0 || (errno != EAGAIN && errno != EINTR))
            return gone(e);
        int rc = await(c, POLLIN, e);
        if (rc)
            return rc;
    }
    return silence(e);
}

/* ---- commands ---- */

static int send_command(struct channel *c, bool delimited, const char *command, json_t *arguments,
                        struct error *e)
{
    json_t *m = json_pack("{s:s, s:o*}", "execute", command, "arguments", arguments);
    CLEANUP_FREE char *text = m ? json_dumps(m, JSON_COMPACT) : NULL;
    char request[256];
    json_decref(m);
    if (!text)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "no memory");
    int len = snprintf(request, sizeof(request), "%s%s\n", delimited ? "\xff" : "", text);
    return send_all(c, request, (size_t)len, e);
}

static int sync_channel(struct channel *c, struct error *e)
{
    char line[LINE_MAX_BYTES];
    json_int_t id = (json_int_t)(clock_monotonic_ns() & 0x7fffffff);
    int rc = send_command(c, true, "guest-sync-delimited", json_pack("{s:I}", "id", id), e);
    while (rc == 0) {
        rc = receive_line(c, line, e);
        const char *after = rc == 0 ? strrchr(line, DELIMITER) : NULL;
        json_t *m = after ? json_loads(after + 1, 0, NULL) : NULL;
        const json_t *value = json_object_get(m, "return");
        bool ours = json_is_integer(value) && json_integer_value(value) == id;
        json_decref(m);
        if (ours)
            break;
    }
    return rc;
}

/* What the guest says, fit to be printed. */
static int refused(const char *command, const json_t *error, struct error *e)
{
    char text[160];
    snprintf(text, sizeof(text), "%s", json_text(error, "desc", "no reason given"));
    for (char *p = text; *p; p++)
        if (*p < ' ' || *p > '~')
            *p = '?';
    return error_set(e, VMSNAP_EXIT_TARGET, EPROTO, "the guest agent refuses %s (%s)", command,
                     text);
}

/* *result: a new reference. */
static int run(struct channel *c, const char *command, json_t *arguments, json_t **result,
               struct error *e)
{
    char line[LINE_MAX_BYTES];
    int rc = send_command(c, false, command, arguments, e);
    if (rc == 0)
        rc = receive_line(c, line, e);
    if (rc)
        return rc;
    json_t *m = json_loads(line, 0, NULL);
    const json_t *error = json_object_get(m, "error");
    *result = json_incref(json_object_get(m, "return"));
    if (error)
        rc = refused(command, error, e);
    else if (!*result)
        rc = error_set(e, VMSNAP_EXIT_TARGET, EPROTO, "the guest agent answers %s with nonsense",
                       command);
    json_decref(m);
    return rc;
}

/* ---- the clock ---- */

static int read_clock(struct channel *c, struct agent_clock *clock, struct error *e)
{
    json_t *value = NULL;
    uint64_t asked = clock_realtime_ns(), began = clock_monotonic_ns();
    int rc = run(c, "guest-get-time", NULL, &value, e);
    uint64_t took = clock_monotonic_ns() - began;
    if (rc == 0 && !json_is_integer(value))
        rc = error_set(e, VMSNAP_EXIT_TARGET, EPROTO, "the guest agent tells no time");
    if (rc == 0) {
        uint64_t guest = (uint64_t)json_integer_value(value);
        *clock = (struct agent_clock){.behind_ns = (int64_t)(asked + took / 2 - guest),
                                      .error_ns = took / 2};
    }
    json_decref(value);
    return rc;
}

static uint64_t worst_ns(const struct agent_clock *clock)
{
    uint64_t off =
        clock->behind_ns < 0 ? 0 - (uint64_t)clock->behind_ns : (uint64_t)clock->behind_ns;
    return off + clock->error_ns < off ? UINT64_MAX : off + clock->error_ns;
}

/* An agent that can set the clock and not the hardware's (no hwclock in the guest) says that it has
 * failed: what counts is what the clock shows then. */
static int set_once(struct channel *c, struct agent_clock *clock, struct error *e)
{
    json_t *result = NULL;
    struct error why = {0};
    int rc = run(c, "guest-set-time", json_pack("{s:I}", "time", (json_int_t)clock_realtime_ns()),
                 &result, &why);
    json_decref(result);
    if (rc && rc != -EPROTO) {
        *e = why;
        return rc;
    }
    int read = read_clock(c, clock, e);
    if (read == 0 && rc && worst_ns(clock) < LIMIT_NS)
        log_info("%s, but the clock is right", why.message);
    else if (read == 0 && rc)
        *e = why;
    return read ? read : worst_ns(clock) < LIMIT_NS ? 0 : rc;
}

int agent_set_clock(int fd, uint64_t deadline_ns, struct agent_clock *clock, struct error *e)
{
    CLEANUP_FREE struct channel *c = calloc(1, sizeof(*c));
    if (!c)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "no memory");
    c->fd = fd;
    c->deadline_ns = deadline_ns;
    int rc = sync_channel(c, e);
    if (rc == 0)
        rc = read_clock(c, clock, e);
    for (int i = 0; rc == 0 && i < TRIES && worst_ns(clock) > GOOD_NS; i++)
        rc = set_once(c, clock, e);
    if (rc == 0 && worst_ns(clock) >= LIMIT_NS)
        rc = error_set(e, VMSNAP_EXIT_TARGET, ERANGE,
                       "the guest's clock was set and is %" PRId64 " ms behind all the same",
                       clock->behind_ns / 1000000);
    return rc;
}
