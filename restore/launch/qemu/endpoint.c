#include "restore/launch/qemu/endpoint.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

static int append(struct endpoint_list *list, const struct endpoint *from)
{
    struct endpoint *items = realloc(list->items, (list->count + 1) * sizeof(*items));
    if (!items)
        return -ENOMEM;
    list->items = items;
    struct endpoint *e = &items[list->count++];
    *e = *from;
    e->path = from->path ? strdup(from->path) : NULL;
    e->host = from->host ? strdup(from->host) : NULL;
    e->port = from->port ? strdup(from->port) : NULL;
    bool failed = (from->path && !e->path) || (from->host && !e->host) || (from->port && !e->port);
    return failed ? -ENOMEM : 0;
}

void endpoint_list_free(struct endpoint_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        free(list->items[i].path);
        free(list->items[i].host);
        free(list->items[i].port);
    }
    free(list->items);
    *list = (struct endpoint_list){0};
}

static int append_truncated(struct endpoint_list *list, const char *path)
{
    if (!path)
        return 0;
    struct endpoint e = {.kind = ENDPOINT_TRUNCATE, .path = (char *)path};
    return append(list, &e);
}

static int append_unix(struct endpoint_list *list, const char *path, bool waits, bool abstract)
{
    if (!path)
        return 0;
    struct endpoint e = {
        .kind = ENDPOINT_UNIX_LISTEN, .path = (char *)path, .waits = waits, .abstract = abstract};
    return append(list, &e);
}

static int append_tcp(struct endpoint_list *list, const char *host, const char *port, bool waits)
{
    if (!port)
        return 0;
    struct endpoint e = {.kind = ENDPOINT_TCP_LISTEN,
                         .host = (char *)(host ? host : ""),
                         .port = (char *)port,
                         .waits = waits};
    return append(list, &e);
}

/* A socket character device of which the parts are known: `v` has path or host and port, server,
 * wait (its default is on), abstract, to (it may move on to the next free port: no collision). */
static int append_socket(struct endpoint_list *list, const json_t *v, bool server_default)
{
    if (!qemu_value_switch(v, "server", server_default))
        return 0;
    bool waits = qemu_value_switch(v, "wait", true);
    const char *path = qemu_value_string(v, "path");
    if (path)
        return append_unix(list, path, waits, qemu_value_switch(v, "abstract", false));
    if (qemu_value_string(v, "to"))
        return 0;
    return append_tcp(list, qemu_value_string(v, "host"), qemu_value_string(v, "port"), waits);
}

/* -chardev BACKEND,id=... */
static int of_chardev(struct endpoint_list *list, const char *value)
{
    json_t *v = qemu_value_parse(value, "backend");
    if (!v)
        return -ENOMEM;
    const char *backend = qemu_value_string(v, "backend");
    int rc = 0;
    if (backend && strcmp(backend, "socket") == 0)
        rc = append_socket(list, v, false);
    else if (backend && strcmp(backend, "file") == 0 && !qemu_value_switch(v, "append", false))
        rc = append_truncated(list, qemu_value_string(v, "path"));
    if (rc == 0 && !qemu_value_switch(v, "logappend", false))
        rc = append_truncated(list, qemu_value_string(v, "logfile"));
    json_decref(v);
    return rc;
}

/* Splits "HOST:PORT" ("[::1]:PORT") in place. */
static void split_host_port(char *text, const char **host, const char **port)
{
    char *colon = strrchr(text, ':');
    *host = *port = NULL;
    if (!colon)
        return;
    *colon = '\0';
    *port = colon + 1;
    size_t len = strlen(text);
    if (text[0] == '[' && len > 1 && text[len - 1] == ']') {
        text[len - 1] = '\0';
        text++;
    }
    *host = text;
}

static int of_short_socket(struct endpoint_list *list, const char *kind, const char *rest,
                           bool server_default)
{
    json_t *v = qemu_value_parse(rest, "address");
    if (!v)
        return -ENOMEM;
    const char *address = qemu_value_string(v, "address");
    CLEANUP_FREE char *text = strdup(address ? address : "");
    int rc = text ? 0 : -ENOMEM;
    const char *host = NULL, *port = NULL;
    if (rc == 0 && strcmp(kind, "unix") == 0) {
        json_object_set_new_nocheck(v, "path", json_string_nocheck(text));
    } else if (rc == 0) {
        split_host_port(text, &host, &port);
        json_object_set_new_nocheck(v, "host", json_string_nocheck(host ? host : ""));
        if (port)
            json_object_set_new_nocheck(v, "port", json_string_nocheck(port));
    }
    if (rc == 0)
        rc = append_socket(list, v, server_default);
    json_decref(v);
    return rc;
}

/* The short way to write a character device: "unix:PATH,server", "tcp:HOST:PORT", "file:PATH",
 * "mon:..." (qemu_chr_parse_compat() in QEMU). */
static int of_short_chardev(struct endpoint_list *list, const char *value, bool server_default)
{
    static const char *const sockets[] = {"unix", "tcp", "telnet", "websocket", "tn3270"};
    if (strncmp(value, "mon:", 4) == 0)
        value += 4;
    if (strncmp(value, "file:", 5) == 0)
        return append_truncated(list, value + 5);
    for (size_t i = 0; i < sizeof(sockets) / sizeof(sockets[0]); i++) {
        size_t len = strlen(sockets[i]);
        if (strncmp(value, sockets[i], len) == 0 && value[len] == ':')
            return of_short_socket(list, sockets[i], value + len + 1, server_default);
    }
    return 0;
}

/* -gdb DEVICE: QEMU adds "server=on,wait=off" to a socket. */
static int of_gdb(struct endpoint_list *list, const char *value)
{
    char *text;
    if (asprintf(&text, "%s,server=on,wait=off", value) < 0)
        return -ENOMEM;
    int rc = of_short_chardev(list, text, true);
    free(text);
    return rc;
}

/* HOST:DISPLAY or unix:PATH; the port is 5900 + DISPLAY. */
static int of_vnc(struct endpoint_list *list, const char *value)
{
    json_t *v = qemu_value_parse(value, "vnc");
    if (!v)
        return -ENOMEM;
    const char *address = qemu_value_string(v, "vnc");
    CLEANUP_FREE char *text = strdup(address ? address : "");
    int rc = text ? 0 : -ENOMEM;
    bool listens = !qemu_value_switch(v, "reverse", false) && !qemu_value_string(v, "to");
    if (rc == 0 && listens && strncmp(text, "unix:", 5) == 0) {
        rc = append_unix(list, text + 5, false, false);
    } else if (rc == 0 && listens) {
        const char *host, *display;
        split_host_port(text, &host, &display);
        char port[16];
        if (display && display[0] >= '0' && display[0] <= '9') {
            snprintf(port, sizeof(port), "%d", 5900 + atoi(display) % 60000);
            rc = append_tcp(list, host, port, false);
        }
    }
    json_decref(v);
    return rc;
}

static int of_display(struct endpoint_list *list, const char *value)
{
    return strncmp(value, "vnc=", 4) == 0 ? of_vnc(list, value + 4) : 0;
}

static int of_spice(struct endpoint_list *list, const char *value)
{
    json_t *v = qemu_value_parse(value, NULL);
    if (!v)
        return -ENOMEM;
    const char *address = qemu_value_string(v, "addr");
    int rc = qemu_value_switch(v, "unix", false)
                 ? append_unix(list, address, false, false)
                 : append_tcp(list, address, qemu_value_string(v, "port"), false);
    if (rc == 0)
        rc = append_tcp(list, address, qemu_value_string(v, "tls-port"), false);
    json_decref(v);
    return rc;
}

/* hostfwd=tcp:ADDRESS:PORT-GUEST */
static int of_forward(struct endpoint_list *list, const char *forward)
{
    if (!forward || strncmp(forward, "udp:", 4) == 0)
        return 0;
    const char *at = strncmp(forward, "tcp:", 4) == 0 ? forward + 4 : forward;
    CLEANUP_FREE char *text = strndup(at, strcspn(at, "-"));
    if (!text)
        return -ENOMEM;
    const char *host, *port;
    split_host_port(text, &host, &port);
    return append_tcp(list, host, port, false);
}

/* A key may stand several times ("hostfwd="): each one counts here. */
static int of_forwards(struct endpoint_list *list, const char *value)
{
    static const char key[] = "hostfwd=";
    int rc = 0;
    for (const char *p = strstr(value, key); p && rc == 0; p = strstr(p, key)) {
        p += strlen(key);
        CLEANUP_FREE char *forward = strndup(p, strcspn(p, ","));
        rc = forward ? of_forward(list, forward) : -ENOMEM;
    }
    return rc;
}

/* -netdev, -nic, -net: socket,listen=HOST:PORT; stream,server=on,addr.type=...; user,hostfwd=... */
static int of_network(struct endpoint_list *list, const char *value)
{
    json_t *v = qemu_value_parse(value, "type");
    if (!v)
        return -ENOMEM;
    int rc = of_forwards(list, value);
    const char *listen = qemu_value_string(v, "listen");
    CLEANUP_FREE char *text = listen ? strdup(listen) : NULL;
    if (rc == 0 && text) {
        const char *host, *port;
        split_host_port(text, &host, &port);
        rc = append_tcp(list, host, port, false);
    }
    const char *type = qemu_value_string(v, "addr.type");
    if (rc == 0 && type && qemu_value_switch(v, "server", false)) {
        if (strcmp(type, "unix") == 0)
            rc = append_unix(list, qemu_value_string(v, "addr.path"), false,
                             qemu_value_switch(v, "addr.abstract", false));
        else if (strcmp(type, "inet") == 0)
            rc = append_tcp(list, qemu_value_string(v, "addr.host"),
                            qemu_value_string(v, "addr.port"), false);
    }
    json_decref(v);
    return rc;
}

/* -object filter-dump,file=PATH */
static int of_object(struct endpoint_list *list, const char *value)
{
    json_t *v = qemu_value_parse(value, "qom-type");
    if (!v)
        return -ENOMEM;
    const char *type = qemu_value_string(v, "qom-type");
    int rc = type && strcmp(type, "filter-dump") == 0
                 ? append_truncated(list, qemu_value_string(v, "file"))
                 : 0;
    json_decref(v);
    return rc;
}

/* -trace [enable=]PATTERN,file=PATH */
static int of_trace(struct endpoint_list *list, const char *value)
{
    json_t *v = qemu_value_parse(value, "enable");
    if (!v)
        return -ENOMEM;
    int rc = append_truncated(list, qemu_value_string(v, "file"));
    json_decref(v);
    return rc;
}

static int of_client_chardev(struct endpoint_list *list, const char *value)
{
    return of_short_chardev(list, value, false);
}

static const struct {
    const char *option;
    int (*add)(struct endpoint_list *list, const char *value);
} kinds[] = {
    {"chardev", of_chardev},
    {"serial", of_client_chardev},
    {"parallel", of_client_chardev},
    {"monitor", of_client_chardev},
    {"qmp", of_client_chardev},
    {"qmp-pretty", of_client_chardev},
    {"debugcon", of_client_chardev},
    {"gdb", of_gdb},
    {"vnc", of_vnc},
    {"display", of_display},
    {"spice", of_spice},
    {"netdev", of_network},
    {"nic", of_network},
    {"net", of_network},
    {"object", of_object},
    {"trace", of_trace},
    {"D", append_truncated},
};

int endpoints_of_option(struct endpoint_list *list, const struct qemu_option *o)
{
    if (qemu_option_is(o, "s")) /* short for -gdb tcp::1234 */
        return append_tcp(list, "", "1234", false);
    for (size_t i = 0; o->value && i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (qemu_option_is(o, kinds[i].option))
            return kinds[i].add(list, o->value);
    return 0;
}
