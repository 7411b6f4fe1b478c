/*
 * A command carries an id that no other client of the same connection can have used
 * ("vmsnap-PID-N"), and only the reply with that id counts: a late reply to a command that timed
 * out, or to one of a process that died and whose connection was taken over, is skipped. Events
 * come at any time; they are kept in a ring, the oldest making room.
 */
#include "common/qmp.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/qmp_wire.h"

#define EVENTS_MAX 256u
#define SILENT_MS 1000
#define FIRECRACKER "firecracker" /* what its process is named, or begins with */

struct qmp {
    struct qmp_wire wire;
    uint64_t last_id;
    bool broken;      /* what came was not QMP: nothing can be trusted any more */
    json_t *greeting; /* NULL after a takeover */
    char error_class[64];
    struct qmp_event events[EVENTS_MAX]; /* a ring */
    unsigned first_event, n_events;
};

static uint64_t deadline_after(int timeout_ms)
{
    return clock_monotonic_ns() + (uint64_t)(timeout_ms > 0 ? timeout_ms : 0) * 1000000u;
}

void qmp_event_clear(struct qmp_event *event)
{
    json_decref(event->data);
    memset(event, 0, sizeof(*event));
}

static struct qmp_event *event_at(struct qmp *q, unsigned i)
{
    return &q->events[(q->first_event + i) % EVENTS_MAX];
}

/* Takes the i-th kept event out of the ring. */
static void event_take(struct qmp *q, unsigned i, struct qmp_event *out)
{
    *out = *event_at(q, i);
    for (; i > 0; i--)
        *event_at(q, i) = *event_at(q, i - 1);
    memset(event_at(q, 0), 0, sizeof(*out));
    q->first_event = (q->first_event + 1) % EVENTS_MAX;
    q->n_events--;
}

/* The VMM's stamp in microseconds, -1 when there is none that makes sense (QEMU sends -1 and -1
 * when the host's clock failed). */
static int64_t event_time(const json_t *message)
{
    const json_t *stamp = json_object_get(message, "timestamp");
    const json_t *s = json_object_get(stamp, "seconds");
    const json_t *us = json_object_get(stamp, "microseconds");
    if (!json_is_integer(s) || !json_is_integer(us))
        return -1;
    json_int_t sec = json_integer_value(s), usec = json_integer_value(us);
    if (sec < 0 || sec > (json_int_t)1 << 40 || usec < 0 || usec > 999999)
        return -1;
    return sec * 1000000 + usec;
}

static void event_keep(struct qmp *q, const json_t *message, const char *name)
{
    if (q->n_events == EVENTS_MAX) {
        struct qmp_event oldest;
        event_take(q, 0, &oldest);
        qmp_event_clear(&oldest);
    }
    struct qmp_event *ev = event_at(q, q->n_events++);
    snprintf(ev->name, sizeof(ev->name), "%s", name);
    ev->time_us = event_time(message);
    ev->data = json_incref(json_object_get(message, "data"));
}

/*
 * Reads one message. An event is kept: 0. Anything else: 1 and *message, a new reference. -errno;
 * after anything but a timeout the connection counts as broken.
 */
static int receive(struct qmp *q, uint64_t deadline_ns, json_t **message, struct error *e)
{
    json_t *m = NULL;
    int r = qmp_wire_receive(&q->wire, deadline_ns, &m, e);
    if (r < 0) {
        q->broken = r != -ETIMEDOUT;
        return r;
    }
    const json_t *name = json_object_get(m, "event");
    if (!name) {
        *message = m;
        return 1;
    }
    if (json_is_string(name))
        event_keep(q, m, json_string_value(name));
    bool good = json_is_string(name);
    json_decref(m);
    if (good)
        return 0;
    q->broken = true;
    return error_set(e, VMSNAP_EXIT_TARGET, EPROTO, "the QMP server sent an event without a name");
}

/* Sends one command line. */
static int send_command(struct qmp *q, const char *command, json_t *arguments, const char *id,
                        int send_fd, uint64_t deadline_ns, struct error *e)
{
    json_t *m = json_object();
    int bad = json_object_set_new(m, "execute", json_string(command));
    if (arguments)
        bad |= json_object_set_new(m, "arguments", arguments);
    bad |= json_object_set_new(m, "id", json_string(id));
    CLEANUP_FREE char *text = bad ? NULL : json_dumps(m, JSON_COMPACT);
    json_decref(m);
    if (!text)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot build the QMP command %s", command);
    size_t len = strlen(text);
    text[len++] = '\n'; /* in place of the terminator: the length counts from here on */
    return qmp_wire_send(&q->wire, text, len, send_fd, deadline_ns, e);
}

/* An error reply, as the VMM words it. */
static int error_reply(struct qmp *q, const json_t *error, struct error *e)
{
    const char *class = json_string_value(json_object_get(error, "class"));
    const char *desc = json_string_value(json_object_get(error, "desc"));
    snprintf(q->error_class, sizeof(q->error_class), "%s", class ? class : "");
    error_set(e, VMSNAP_EXIT_TARGET, 0, "%s (%s)", desc ? desc : "no description",
              class ? class : "no class");
    return -EPROTO;
}

/* Looks at a message that is no event. 1: our reply, *result set; 0: not ours; -errno. */
static int take_reply(struct qmp *q, const json_t *message, const char *id, json_t **result,
                      struct error *e)
{
    const json_t *error = json_object_get(message, "error");
    json_t *value = json_object_get(message, "return");
    const json_t *their_id = json_object_get(message, "id");
    if (!error && !value) {
        q->broken = true;
        return error_set(e, VMSNAP_EXIT_TARGET, EPROTO,
                         "the QMP server sent a message that is no event and no reply");
    }
    if (json_is_string(their_id) && strcmp(json_string_value(their_id), id) != 0)
        return 0;
    if (error && !their_id && q->wire.skip_noise)
        return 0; /* about what the dead process had half written */
    if (error)
        return error_reply(q, error, e);
    if (!json_is_string(their_id)) {
        q->broken = true;
        return error_set(e, VMSNAP_EXIT_TARGET, EPROTO,
                         "the QMP server sent a reply without our id");
    }
    if (result)
        *result = json_incref(value);
    return 1;
}

static int await_reply(struct qmp *q, const char *id, uint64_t deadline_ns, json_t **result,
                       struct error *e)
{
    for (;;) {
        json_t *message = NULL;
        int r = receive(q, deadline_ns, &message, e);
        if (r > 0) {
            r = take_reply(q, message, id, result, e);
            json_decref(message);
        }
        if (r != 0)
            return r < 0 ? r : 0;
    }
}

int qmp_command(struct qmp *q, const char *command, json_t *arguments, int send_fd, int timeout_ms,
                json_t **result, struct error *e)
{
    uint64_t deadline_ns = deadline_after(timeout_ms);
    q->error_class[0] = '\0';
    if (q->broken) {
        json_decref(arguments);
        return error_set(e, VMSNAP_EXIT_TARGET, EPIPE,
                         "%s: the connection to the QMP server is lost", command);
    }
    char id[64];
    snprintf(id, sizeof(id), "vmsnap-%d-%llu", (int)getpid(), (unsigned long long)++q->last_id);
    int r = send_command(q, command, arguments, id, send_fd, deadline_ns, e);
    if (r == 0)
        r = await_reply(q, id, deadline_ns, result, e);
    if (r < 0)
        error_wrap(e, "QMP command %s", command);
    return r;
}

int qmp_hmp(struct qmp *q, const char *line, int timeout_ms, char **text, struct error *e)
{
    json_t *result = NULL;
    int r = qmp_command(q, "human-monitor-command", json_pack("{s:s}", "command-line", line), -1,
                        timeout_ms, &result, e);
    if (r == 0 && !json_is_string(result))
        r = error_set(e, VMSNAP_EXIT_TARGET, EPROTO, "the answer is not a text");
    if (r == 0 && !(*text = strdup(json_string_value(result))))
        r = error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot keep the answer");
    json_decref(result);
    if (r < 0)
        error_wrap(e, "monitor command \"%s\"", line);
    return r;
}

int qmp_wait_event(struct qmp *q, const char *name, int timeout_ms, struct qmp_event *event,
                   struct error *e)
{
    uint64_t deadline_ns = deadline_after(timeout_ms);
    for (;;) {
        for (unsigned i = 0; i < q->n_events; i++) {
            if (strcmp(event_at(q, i)->name, name) == 0) {
                event_take(q, i, event);
                return 0;
            }
        }
        json_t *message = NULL;
        int r = q->broken ? error_set(e, VMSNAP_EXIT_TARGET, EPIPE,
                                      "the connection to the QMP server is lost")
                          : receive(q, deadline_ns, &message, e);
        json_decref(message);
        if (r < 0) {
            error_wrap(e, "waiting for the event %s", name);
            return r;
        }
    }
}

bool qmp_failed_with(const struct qmp *q, const char *error_class)
{
    return strcmp(q->error_class, error_class) == 0;
}

const json_t *qmp_greeting(const struct qmp *q)
{
    return q->greeting;
}

int qmp_fd(const struct qmp *q)
{
    return q->wire.fd;
}

int qmp_peer_pid(int fd, pid_t *pid)
{
    struct ucred cred;
    socklen_t len = sizeof(cred);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
        return -errno;
    if (cred.pid <= 0)
        return -ESRCH; /* of another pid namespace that is not below ours */
    *pid = cred.pid;
    return 0;
}

void qmp_peer_name(int fd, char name[QMP_PEER_NAME])
{
    pid_t pid;
    char path[64];
    name[0] = '\0';
    if (qmp_peer_pid(fd, &pid))
        return;
    snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
    CLEANUP_FD int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = file < 0 ? -1 : read(file, name, QMP_PEER_NAME - 1);
    name[n < 0 ? 0 : n] = '\0';
    name[strcspn(name, "\n")] = '\0';
}

static struct qmp *qmp_new(int fd)
{
    struct qmp *q = calloc(1, sizeof(*q));
    if (q)
        qmp_wire_init(&q->wire, fd);
    return q;
}

void qmp_close(struct qmp *q)
{
    if (!q)
        return;
    for (; q->n_events > 0; q->n_events--)
        qmp_event_clear(event_at(q, q->n_events - 1));
    qmp_wire_close(&q->wire);
    json_decref(q->greeting);
    free(q);
}

/* Whether the first bytes are those of an HTTP server's reply. Takes nothing. */
static bool speaks_http(int fd)
{
    static const char http[] = "HTTP/";
    char first[sizeof(http) - 1];
    ssize_t n = recv(fd, first, sizeof(first), MSG_PEEK | MSG_DONTWAIT);
    return n > 0 && memcmp(first, http, (size_t)n) == 0;
}

/*
 * A QMP server greets at once; Firecracker's HTTP server says nothing until it is asked. So after a
 * second of silence it gets two empty lines: a request without a first line, which it answers with
 * status 400 (micro-http, src/request.rs). Nobody else is asked: behind the socket of a serial port
 * that would be somebody's Enter key.
 */
static void ask_the_silent(const struct qmp *q, uint64_t deadline_ns)
{
    uint64_t until_ns = deadline_after(SILENT_MS);
    if (qmp_wire_wait(&q->wire, until_ns < deadline_ns ? until_ns : deadline_ns) == 0)
        return;
    char name[QMP_PEER_NAME];
    qmp_peer_name(q->wire.fd, name);
    if (strncmp(name, FIRECRACKER, strlen(FIRECRACKER)) != 0)
        return;
    if (send(q->wire.fd, "\r\n\r\n", 4, MSG_DONTWAIT | MSG_NOSIGNAL) == 4)
        qmp_wire_wait(&q->wire, deadline_ns);
}

static int not_qmp(bool http, struct error *e)
{
    error_set(e, VMSNAP_EXIT_TARGET, 0, "this is not a QMP server%s",
              http ? ": it speaks HTTP" : "");
    if (http)
        error_hint(e, "a Firecracker's API socket goes with --api in place of --qmp");
    else
        error_hint(e, "give the socket of QEMU's -qmp option, not that of a monitor, serial port "
                      "or guest agent");
    return -EPROTO;
}

static int no_greeting(struct error *e)
{
    int r = error_set(e, VMSNAP_EXIT_TIMEOUT, ETIMEDOUT, "connected, but no QMP greeting came");
    error_hint(e, "either another client (libvirt, Proxmox, another vmsnap, ...) holds this "
                  "socket: then start the VM with a second -qmp socket and name that one; or the "
                  "VMM hangs or is stopped; or it is a Firecracker's API socket: that goes with "
                  "--api");
    return r;
}

/* The greeting is the first thing a QMP server sends, before any event. */
static int read_greeting(struct qmp *q, bool dialled, uint64_t deadline_ns, struct error *e)
{
    json_t *message = NULL;
    if (dialled)
        ask_the_silent(q, deadline_ns);
    if (speaks_http(q->wire.fd))
        return not_qmp(true, e);
    int r = receive(q, deadline_ns, &message, e);
    if (r == -ETIMEDOUT)
        return no_greeting(e);
    json_t *greeting = r > 0 ? json_object_get(message, "QMP") : NULL;
    if (json_is_object(greeting))
        q->greeting = json_incref(greeting);
    else if (r >= 0 || r == -EPROTO)
        r = not_qmp(false, e);
    else if (r == -EPIPE)
        error_hint(e, "is it the socket of QEMU's -qmp option? A Firecracker's API socket goes "
                      "with --api");
    json_decref(message);
    return r < 0 ? r : 0;
}

/* On failure the fd stays the caller's. */
static int attach(struct qmp **out, int fd, bool dialled, int timeout_ms, struct error *e)
{
    uint64_t deadline_ns = deadline_after(timeout_ms);
    struct qmp *q = qmp_new(fd);
    if (!q)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot talk QMP");
    int r = read_greeting(q, dialled, deadline_ns, e);
    if (r == 0)
        r = qmp_command(q, "qmp_capabilities", NULL, -1, clock_ms_until(deadline_ns), NULL, e);
    if (r < 0) {
        q->wire.fd = -1;
        qmp_close(q);
        return r;
    }
    *out = q;
    return 0;
}

int qmp_attach(struct qmp **out, int fd, int timeout_ms, struct error *e)
{
    return attach(out, fd, false, timeout_ms, e);
}

int qmp_attach_dialled(struct qmp **out, int fd, int timeout_ms, struct error *e)
{
    return attach(out, fd, true, timeout_ms, e);
}

int qmp_take_over(struct qmp **out, int fd, int timeout_ms, struct error *e)
{
    struct qmp *q = qmp_new(fd);
    if (!q)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot talk QMP");
    q->wire.skip_noise = true;
    int r = qmp_wire_send(&q->wire, "\xff", 1, -1, deadline_after(timeout_ms), e);
    if (r < 0) {
        q->wire.fd = -1;
        qmp_close(q);
        return r;
    }
    *out = q;
    return 0;
}

/* connect() with a deadline. A full backlog of a UNIX socket gives EAGAIN at once when the socket
 * is non-blocking, with nothing to poll for: try again. */
static int connect_until(int fd, const struct sockaddr_un *addr, uint64_t deadline_ns)
{
    while (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0) {
        if (errno != EAGAIN && errno != EINTR)
            return -errno;
        if (clock_monotonic_ns() >= deadline_ns)
            return -ETIMEDOUT;
        usleep(5000);
    }
    return 0;
}

int qmp_dial(int *out, const char *path, int timeout_ms, struct error *e)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(addr.sun_path))
        return error_set(e, VMSNAP_EXIT_TARGET, ENAMETOOLONG, "QMP socket %s", path);
    memcpy(addr.sun_path, path, strlen(path));
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "cannot make a socket");
    int r = connect_until(fd, &addr, deadline_after(timeout_ms));
    if (r < 0) {
        int code = r == -ETIMEDOUT ? VMSNAP_EXIT_TIMEOUT : VMSNAP_EXIT_TARGET;
        error_set(e, code, -r, "cannot connect to the QMP socket %s", path);
        if (r == -EACCES || r == -EPERM)
            error_hint(e, "to connect takes the right to write to it: run vmsnap as root");
        error_hint(e, "is the VM running, and was it started with -qmp unix:%s,server=on,wait=off?",
                   path);
        return r;
    }
    *out = take_fd(&fd);
    return 0;
}

int qmp_connect(struct qmp **out, const char *path, int timeout_ms, struct error *e)
{
    uint64_t deadline_ns = deadline_after(timeout_ms);
    CLEANUP_FD int fd = -1;
    int r = qmp_dial(&fd, path, timeout_ms, e);
    if (r < 0)
        return r;
    r = qmp_attach_dialled(out, fd, clock_ms_until(deadline_ns), e);
    if (r < 0) {
        error_wrap(e, "QMP socket %s", path);
        return r;
    }
    take_fd(&fd);
    return 0;
}
