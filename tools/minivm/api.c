/*
 * api.c - see api.h. Requests and answers are Firecracker's (src/firecracker/src/api_server and
 * src/vmm/src/rpc_interface.rs of its source, 1.17-dev): 200 with JSON, 204, or 400 with
 * {"fault_message": TEXT}; unknown keys are errors. A VM may be paused twice and resumed twice.
 */
#include "api.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "commands.h"
#include "http.h"
#include "save.h"

#define ROOM (HTTP_MAX_HEAD + HTTP_MAX_BODY)
#define ANSWER_ROOM 2048u
#define SEND_SECONDS 5

struct client {
    int fd;         /* -1: unused */
    bool continued; /* the request that is coming in was told to go on */
    size_t used;
    char *data; /* ROOM */
};

struct api {
    struct control *control;
    int listen_fd;
    const char *path;
    struct client clients[API_CONNECTIONS];
};

/* A request that is understood: where its answer goes. */
struct call {
    struct control *control;
    struct vm *vm;
    json_t *body; /* an object, or NULL */
    json_t *answer;
    char fault[400]; /* empty: none */
};

static void fault(struct call *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void fault(struct call *c, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(c->fault, sizeof(c->fault), format, args);
    va_end(args);
}

static void get_instance(struct call *c)
{
    static const char *const states[] = {"Not started", "Paused", "Running"};
    c->answer = json_pack("{s:s,s:s,s:s,s:s}", "id", "anonymous-instance", "state",
                          states[c->vm->status], "vmm_version", API_VERSION, "app_name", "minivm");
}

static void get_version(struct call *c)
{
    c->answer = json_pack("{s:s}", "firecracker_version", API_VERSION);
}

static json_t *describe_machine(const struct options *o)
{
    bool huge = o->kind == MEMORY_HUGETLB || o->kind == MEMORY_HUGETLBFS;
    return json_pack("{s:i,s:I,s:b,s:b,s:s}", "vcpu_count", (int)o->cpus, "mem_size_mib",
                     (json_int_t)(o->memory_bytes >> 20), "smt", 0, "track_dirty_pages", 0,
                     "huge_pages",
                     huge                    ? "2M"
                     : o->kind == MEMORY_THP ? "Transparent"
                                             : "None");
}

static void get_machine_config(struct call *c)
{
    c->answer = describe_machine(&c->vm->o);
}

/* All of it: there are no drives. */
static void get_config(struct call *c)
{
    const struct options *o = &c->vm->o;
    json_t *balloon = o->balloon_bytes
                          ? json_pack("{s:I}", "amount_mib", (json_int_t)(o->balloon_bytes >> 20))
                          : json_null();
    c->answer = json_pack("{s:[], s:o, s:o}", "drives", "machine-config", describe_machine(o),
                          "balloon", balloon);
}

/* Is every key of the body in `known`, a list that ends with NULL? Else says which is not. */
static bool knows_keys(struct call *c, const char *const *known)
{
    const char *key;
    json_t *value;
    json_object_foreach(c->body, key, value)
    {
        size_t i = 0;
        while (known[i] && strcmp(known[i], key) != 0)
            i++;
        if (!known[i]) {
            fault(c,
                  "An error occurred when deserializing the json body of a request: unknown field "
                  "`%.100s`.",
                  key);
            return false;
        }
    }
    return true;
}

static const char *text_of(struct call *c, const char *key)
{
    const char *text = json_string_value(json_object_get(c->body, key));
    if (!text && !c->fault[0])
        fault(c,
              "An error occurred when deserializing the json body of a request: missing field "
              "`%s`.",
              key);
    return text;
}

static bool is_started(struct call *c)
{
    if (c->vm->status == VM_INMIGRATE)
        fault(c, "The requested operation is not supported before starting the microVM.");
    return c->vm->status != VM_INMIGRATE;
}

static void patch_vm(struct call *c)
{
    static const char *const keys[] = {"state", NULL};
    const char *state = knows_keys(c, keys) ? text_of(c, "state") : NULL;
    if (!state || !is_started(c))
        return;
    if (strcmp(state, "Paused") == 0)
        commands_stop(c->control, c->vm);
    else if (strcmp(state, "Resumed") == 0)
        commands_cont(c->control, c->vm);
    else
        fault(c,
              "An error occurred when deserializing the json body of a request: unknown variant "
              "`%.100s`, expected `Paused` or `Resumed`.",
              state);
}

static void put_snapshot(struct call *c)
{
    static const char *const keys[] = {"snapshot_type", "snapshot_path", "mem_file_path", NULL};
    if (!knows_keys(c, keys))
        return;
    const json_t *type = json_object_get(c->body, "snapshot_type");
    const char *kind = type ? text_of(c, "snapshot_type") : "Full";
    const char *state = text_of(c, "snapshot_path"), *memory = text_of(c, "mem_file_path");
    char why[200];
    if (c->fault[0] || !is_started(c))
        return;
    if (strcmp(kind, "Full") != 0)
        fault(c, "Create snapshot error: minivm makes no snapshots but full ones, not `%.100s`",
              kind);
    else if (c->vm->status == VM_RUNNING)
        fault(c, "Create snapshot error: Cannot save the microVM state: Operation not allowed: "
                 "save/restore unavailable while running");
    else if (!save_files(c->vm, state, memory, why, sizeof(why)))
        fault(c, "Create snapshot error: %s", why);
}

static void after_start(struct call *c)
{
    fault(c, "The requested operation is not supported after starting the microVM.");
}

static const struct route {
    const char *method, *path;
    void (*run)(struct call *c);
} routes[] = {
    {"GET", "/", get_instance},
    {"GET", "/machine-config", get_machine_config},
    {"GET", "/version", get_version},
    {"GET", "/vm/config", get_config},
    {"PATCH", "/vm", patch_vm},
    {"PUT", "/snapshot/create", put_snapshot},
    {"PUT", "/snapshot/load", after_start},
};

static const struct route *find_route(const struct http_request *r)
{
    for (size_t i = 0; i < sizeof(routes) / sizeof(routes[0]); i++)
        if (strcmp(routes[i].method, r->method) == 0 && strcmp(routes[i].path, r->path) == 0)
            return &routes[i];
    return NULL;
}

/* Fills `c`, whose body is still to be read. */
static void execute(struct call *c, const struct http_request *r, const char *body)
{
    const struct route *route = find_route(r);
    bool reads = strcmp(r->method, "GET") == 0;
    json_error_t e;
    if (reads && r->body_bytes) {
        fault(c, "GET request cannot have a body.");
    } else if (!reads && !r->body_bytes) {
        fault(c, "Empty %s request.", r->method);
    } else if (!route) {
        fault(c, "Invalid request method and/or path: %s %s.", r->method, r->path + 1);
    } else {
        c->body = reads ? NULL : json_loadb(body, r->body_bytes, JSON_REJECT_DUPLICATES, &e);
        if (reads || json_is_object(c->body))
            route->run(c);
        else
            fault(c, "An error occurred when deserializing the json body of a request: %s.",
                  c->body ? "not an object" : e.text);
    }
}

static void drop(struct client *k)
{
    close(k->fd);
    free(k->data);
    *k = (struct client){.fd = -1};
}

/* Takes `body` over. False: he does not read. */
static bool answer(struct client *k, int status, json_t *body)
{
    char out[ANSWER_ROOM];
    char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    json_decref(body);
    ssize_t n = http_format(out, sizeof(out), status, text);
    free(text);
    for (ssize_t done = 0, sent; done < n; done += sent) {
        sent = send(k->fd, out + done, (size_t)(n - done), MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR)
            return false;
        sent = sent < 0 ? 0 : sent;
    }
    return n >= 0;
}

static bool run_request(struct api *a, struct client *k, const struct http_request *r)
{
    struct call c = {.control = a->control, .vm = control_vm(a->control)};
    execute(&c, r, k->data + r->head_bytes);
    json_decref(c.body);
    size_t len = r->head_bytes + r->body_bytes;
    memmove(k->data, k->data + len, k->used - len);
    k->used -= len;
    k->continued = false;
    if (c.fault[0])
        return answer(k, 400, json_pack("{s:s}", "fault_message", c.fault));
    return answer(k, c.answer ? 200 : 204, c.answer);
}

/* Answers the requests that are complete; false: the connection is over. */
static bool serve_client(struct api *a, struct client *k)
{
    struct http_request r;
    const char *why;
    for (;;) {
        switch (http_parse(k->data, k->used, &r, &why)) {
        case HTTP_MORE:
            return true;
        case HTTP_HEAD:
            if (!r.expects_continue || k->continued)
                return true;
            k->continued = true;
            return answer(k, 100, NULL);
        case HTTP_BAD:
            answer(k, 400, json_pack("{s:s}", "error", why));
            return false;
        case HTTP_WHOLE:
            if (!run_request(a, k, &r))
                return false;
        }
    }
}

static void receive(struct api *a, struct client *k)
{
    ssize_t n = recv(k->fd, k->data + k->used, ROOM - k->used, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    k->used += n > 0 ? (size_t)n : 0;
    if (n <= 0 || !serve_client(a, k))
        drop(k);
}

static void add(struct api *a)
{
    struct timeval limit = {.tv_sec = SEND_SECONDS};
    int fd = accept4(a->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    for (unsigned i = 0; fd >= 0 && i < API_CONNECTIONS; i++) {
        struct client *k = &a->clients[i];
        if (k->fd >= 0)
            continue;
        *k = (struct client){.fd = fd, .data = malloc(ROOM)};
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
        if (!k->data)
            drop(k);
        return;
    }
    if (fd >= 0)
        close(fd);
}

struct api *api_open(struct control *c, const char *path, char *why, size_t why_bytes)
{
    struct api *a = calloc(1, sizeof(*a));
    int fd = a ? control_socket(path, why, why_bytes) : -1;
    if (fd < 0) {
        free(a);
        return NULL;
    }
    a->control = c;
    a->listen_fd = fd;
    a->path = path;
    for (unsigned i = 0; i < API_CONNECTIONS; i++)
        a->clients[i].fd = -1;
    return a;
}

void api_close(struct api *a)
{
    unlink(a->path);
}

void api_poll(const struct api *a, struct pollfd p[API_POLLED])
{
    p[0] = (struct pollfd){.fd = a ? a->listen_fd : -1, .events = POLLIN};
    for (unsigned i = 0; i < API_CONNECTIONS; i++)
        p[1 + i] = (struct pollfd){.fd = a ? a->clients[i].fd : -1, .events = POLLIN};
}

void api_serve(struct api *a, const struct pollfd p[API_POLLED])
{
    for (unsigned i = 0; a && i < API_CONNECTIONS; i++)
        if (p[1 + i].revents && a->clients[i].fd >= 0)
            receive(a, &a->clients[i]);
    if (a && p[0].revents)
        add(a);
}
