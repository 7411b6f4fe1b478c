/*
 * control.c - the main thread's loop. A message is a JSON object, however many lines it takes. A
 * byte 0xFF, which no JSON has, clears what came before it: so another process can take over a
 * connection whose user died in the middle of a command. What a user sent before he died is done.
 * Everything is bounded; who does not read his answers for a while is dropped.
 */
#include "control.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "api.h"
#include "balloon.h"
#include "commands.h"
#include "forkdump.h"
#include "report.h"

#define MAX_CONNECTIONS 16u
#define MAX_MESSAGE 65536u
#define SEND_SECONDS 5

struct connection {
    int fd; /* -1: unused */
    int passed_fd;
    bool negotiated;
    bool gone; /* nobody reads there any more: what was sent before is still done */
    size_t used;
    char *buf; /* MAX_MESSAGE */
};

struct control {
    struct vm *vm;
    int listen_fd, signal_fd;
    const char *listen_path; /* ours, if we listen */
    struct api *api;         /* or NULL */
    bool quit;
    struct connection connections[MAX_CONNECTIONS];
};

struct vm *control_vm(struct control *c)
{
    return c->vm;
}

void control_quit(struct control *c)
{
    c->quit = true;
}

static void drop(struct connection *k)
{
    if (k->passed_fd >= 0)
        close(k->passed_fd);
    close(k->fd);
    free(k->buf);
    *k = (struct connection){.fd = -1, .passed_fd = -1};
}

static bool send_all(int fd, const char *text, size_t len)
{
    while (len > 0) {
        ssize_t n = send(fd, text, len, MSG_NOSIGNAL);
        if (n <= 0 && errno != EINTR)
            return false;
        text += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
    return true;
}

/* Takes `message` over. Who does not read for SEND_SECONDS is cut off: reading from him then finds
 * the end, after what he had sent. */
static void say(struct connection *k, json_t *message)
{
    char *text = k->gone ? NULL : json_dumps(message, JSON_COMPACT);
    json_decref(message);
    if (!text)
        return;
    size_t len = strlen(text);
    text[len++] = '\n'; /* in place of the terminator */
    if (!send_all(k->fd, text, len)) {
        k->gone = true;
        shutdown(k->fd, SHUT_RDWR);
    }
    free(text);
}

static bool add(struct control *c, int fd)
{
    struct timeval limit = {.tv_sec = SEND_SECONDS};
    for (unsigned i = 0; i < MAX_CONNECTIONS; i++) {
        struct connection *k = &c->connections[i];
        if (k->fd >= 0)
            continue;
        *k = (struct connection){.fd = fd, .passed_fd = -1, .buf = malloc(MAX_MESSAGE)};
        if (!k->buf)
            break;
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
        say(k, json_pack("{s{s{s:i,s:s}s[]}}", "QMP", "version", "vmsnap-vmm", 1, "package",
                         "minivm 1", "capabilities"));
        return true;
    }
    close(fd);
    return false;
}

static json_t *timestamp(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return json_pack("{s:I,s:I}", "seconds", (json_int_t)t.tv_sec, "microseconds",
                     (json_int_t)(t.tv_nsec / 1000));
}

void control_event(struct control *c, const char *name, json_t *data)
{
    json_t *event = json_pack("{s:s,s:o}", "event", name, "timestamp", timestamp());
    report_line("event", json_pack("{s:s,s:O?}", "event", name, "data", data));
    if (data)
        json_object_set_new(event, "data", data);
    for (unsigned i = 0; i < MAX_CONNECTIONS; i++)
        if (c->connections[i].fd >= 0 && c->connections[i].negotiated)
            say(&c->connections[i], json_incref(event));
    json_decref(event);
}

static json_t *error(const char *class, const char *text)
{
    return json_pack("{s{s:s,s:s}}", "error", "class", class, "desc", text);
}

static json_t *execute(struct control *c, struct connection *k, json_t *message)
{
    const char *name = json_string_value(json_object_get(message, "execute"));
    json_t *arguments = json_object_get(message, "arguments");
    if (!name || (arguments && !json_is_object(arguments)))
        return error("GenericError", "not a command");
    if (strcmp(name, "qmp_capabilities") == 0) {
        k->negotiated = true;
        return json_pack("{s{}}", "return");
    }
    if (!k->negotiated)
        return error("CommandNotFound", "Expecting capabilities negotiation with qmp_capabilities");
    const struct command *command = commands_find(name);
    if (!command) {
        char text[160];
        snprintf(text, sizeof(text), "The command %.100s has not been found", name);
        return error("CommandNotFound", text);
    }
    struct request r = {.control = c, .vm = c->vm, .arguments = arguments, .fd = k->passed_fd};
    if (command->takes_fd && r.fd < 0)
        return error("GenericError", "the command needs a descriptor (SCM_RIGHTS)");
    json_t *result = command->run(&r);
    return result ? json_pack("{s:o}", "return", result) : error("GenericError", r.problem);
}

static void answer(struct control *c, struct connection *k, json_t *message)
{
    json_t *reply = execute(c, k, message);
    json_t *id = json_object_get(message, "id");
    if (id)
        json_object_set(reply, "id", id);
    json_decref(message);
    if (k->passed_fd >= 0)
        close(k->passed_fd);
    k->passed_fd = -1;
    say(k, reply);
}

static void forget(struct connection *k, size_t len)
{
    memmove(k->buf, k->buf + len, k->used - len);
    k->used -= len;
}

/* Takes the messages that are complete. */
static void parse(struct control *c, struct connection *k)
{
    while (k->fd >= 0 && k->used > 0) {
        const char *cut = memrchr(k->buf, 0xff, k->used);
        if (cut) {
            forget(k, (size_t)(cut - k->buf) + 1);
            say(k, error("GenericError", "JSON parse error: cleared"));
            continue;
        }
        size_t blank = 0;
        while (blank < k->used && strchr(" \t\r\n", k->buf[blank]))
            blank++;
        forget(k, blank);
        if (k->used == 0)
            return;
        json_error_t e;
        json_t *message = json_loadb(k->buf, k->used, JSON_DISABLE_EOF_CHECK, &e);
        if (!message && json_error_code(&e) == json_error_premature_end_of_input)
            return;
        forget(k, message ? (size_t)e.position : k->used);
        if (json_is_object(message)) {
            answer(c, k, message);
        } else {
            json_decref(message);
            say(k, error("GenericError", "JSON parse error: an object was expected"));
        }
    }
}

/* Of the descriptors that come the last one is kept. */
static void take_fds(struct connection *k, struct msghdr *m)
{
    for (struct cmsghdr *h = CMSG_FIRSTHDR(m); h; h = CMSG_NXTHDR(m, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            if (k->passed_fd >= 0)
                close(k->passed_fd);
            memcpy(&k->passed_fd, CMSG_DATA(h) + i * sizeof(int), sizeof(int));
        }
    }
}

static void receive(struct control *c, struct connection *k)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(8 * sizeof(int))];
    } control;
    struct iovec v = {k->buf + k->used, MAX_MESSAGE - k->used};
    struct msghdr m = {
        .msg_iov = &v, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(k->fd, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0)
        take_fds(k, &m);
    k->used += n > 0 ? (size_t)n : 0;
    if (n > 0)
        parse(c, k);
    if (k->fd >= 0 && (n <= 0 || k->used == MAX_MESSAGE))
        drop(k);
}

static bool set_path(struct sockaddr_un *a, const char *path, char *why, size_t why_bytes)
{
    *a = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(a->sun_path)) {
        snprintf(why, why_bytes, "the path of a socket is too long: %s", path);
        return false;
    }
    strcpy(a->sun_path, path);
    return true;
}

bool control_connect(struct control *c, const char *path, char *why, size_t why_bytes)
{
    struct sockaddr_un a;
    if (!set_path(&a, path, why, why_bytes))
        return false;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)) != 0) {
        snprintf(why, why_bytes, "cannot connect to %s: %s", path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return false;
    }
    return add(c, fd);
}

/* Nobody listens on the socket any more. */
static bool is_left_over(const struct sockaddr_un *a)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int r = connect(fd, (const struct sockaddr *)a, sizeof(*a));
    bool refused = r != 0 && errno == ECONNREFUSED;
    close(fd);
    return refused;
}

int control_socket(const char *path, char *why, size_t why_bytes)
{
    struct sockaddr_un a;
    if (!set_path(&a, path, why, why_bytes))
        return -1;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (is_left_over(&a))
        unlink(path);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) != 0 || listen(fd, 8) != 0) {
        snprintf(why, why_bytes, "cannot listen on %s: %s", path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return -1;
    }
    return fd;
}

bool control_listen(struct control *c, const char *path, char *why, size_t why_bytes)
{
    c->listen_fd = control_socket(path, why, why_bytes);
    c->listen_path = c->listen_fd >= 0 ? path : NULL;
    return c->listen_fd >= 0;
}

bool control_listen_api(struct control *c, const char *path, char *why, size_t why_bytes)
{
    c->api = api_open(c, path, why, why_bytes);
    return c->api != NULL;
}

struct control *control_open(struct vm *vm, char *why, size_t why_bytes)
{
    struct control *c = calloc(1, sizeof(*c));
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGCHLD);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    int fd = signalfd(-1, &signals, SFD_CLOEXEC);
    if (!c || fd < 0) {
        snprintf(why, why_bytes, "cannot serve: %s", strerror(errno));
        free(c);
        return NULL;
    }
    c->vm = vm;
    c->listen_fd = -1;
    c->signal_fd = fd;
    for (unsigned i = 0; i < MAX_CONNECTIONS; i++)
        c->connections[i].fd = c->connections[i].passed_fd = -1;
    return c;
}

/* True: it is time to end. */
static bool take_signal(struct control *c)
{
    struct signalfd_siginfo s;
    if (read(c->signal_fd, &s, sizeof(s)) != (ssize_t)sizeof(s))
        return false;
    if (s.ssi_signo != SIGCHLD)
        return true;
    if (forkdump_reap())
        control_event(c, "X_FORK_DUMP_DONE", forkdump_status());
    return false;
}

enum { POLL_SIGNAL, POLL_FAILED, POLL_LISTEN, POLL_CONNECTIONS };
#define POLL_API (POLL_CONNECTIONS + MAX_CONNECTIONS)
#define POLL_ALL (POLL_API + API_POLLED)

/* Serves until there is a reason to end; false: the guest died. */
static bool serve(struct control *c)
{
    struct pollfd p[POLL_ALL];
    while (!c->quit) {
        p[POLL_SIGNAL] = (struct pollfd){.fd = c->signal_fd, .events = POLLIN};
        p[POLL_FAILED] = (struct pollfd){.fd = c->vm->failed_fd, .events = POLLIN};
        p[POLL_LISTEN] = (struct pollfd){.fd = c->listen_fd, .events = POLLIN};
        for (unsigned i = 0; i < MAX_CONNECTIONS; i++)
            p[POLL_CONNECTIONS + i] = (struct pollfd){.fd = c->connections[i].fd, .events = POLLIN};
        api_poll(c->api, p + POLL_API);
        if (poll(p, POLL_ALL, balloon_turn(c->vm)) < 0)
            continue;
        if (p[POLL_FAILED].revents)
            return false;
        if (p[POLL_SIGNAL].revents && take_signal(c))
            return true;
        for (unsigned i = 0; i < MAX_CONNECTIONS; i++)
            if (p[POLL_CONNECTIONS + i].revents && c->connections[i].fd >= 0)
                receive(c, &c->connections[i]);
        int fd = p[POLL_LISTEN].revents ? accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC) : -1;
        if (fd >= 0)
            add(c, fd);
        api_serve(c->api, p + POLL_API);
    }
    return true;
}

bool control_run(struct control *c)
{
    bool alive = serve(c);
    if (c->listen_path)
        unlink(c->listen_path);
    if (c->api)
        api_close(c->api);
    return alive;
}
