#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/qemu/agent.h"
#include "common/qemu/qom.h"

#define PORT_TYPE "virtserialport"
#define PORT_NAME "org.qemu.guest_agent.0"

static int no_port(struct error *e)
{
    error_set(e, VMSNAP_EXIT_TARGET, ENOENT, "the VM has no port for a guest agent");
    error_hint(e, "-device virtserialport,name=" PORT_NAME " and a -chardev socket,server=on");
    return -ENOENT;
}

/* A text property; 0 and an empty text where there is none. */
static int get_text(struct qom *m, const char *path, const char *property, char *out, size_t size,
                    struct error *e)
{
    json_t *value = NULL;
    int rc = qom_get_if_any(m, path, property, &value, e);
    const char *text = json_string_value(value);
    snprintf(out, size, "%s", text ? text : "");
    json_decref(value);
    return rc;
}

/* The name of the character device behind the agent's port. */
static int find_chardev(struct qom *m, const json_t *described, char *label, size_t size,
                        struct error *e)
{
    size_t i;
    const json_t *device;
    json_array_foreach(json_object_get(described, "devices"), i, device)
    {
        const char *path = json_text(device, "path", "");
        char name[64];
        if (strcmp(json_text(device, "type", ""), PORT_TYPE) != 0)
            continue;
        int rc = get_text(m, path, "name", name, sizeof(name), e);
        if (rc == 0 && strcmp(name, PORT_NAME) == 0)
            rc = get_text(m, path, "chardev", label, size, e);
        if (rc || *label)
            return rc;
    }
    return no_port(e);
}

/* What QEMU calls it: "disconnected:unix:/run/qga.sock,server=on". New reference in *out. */
static int find_filename(struct qom *m, const char *label, char *out, size_t size, struct error *e)
{
    json_t *list = NULL;
    int rc = qom_ask(m, "query-chardev", NULL, &list, e);
    size_t i;
    const json_t *one;
    json_array_foreach(list, i, one)
    {
        if (strcmp(json_text(one, "label", ""), label) == 0)
            snprintf(out, size, "%s", json_text(one, "filename", ""));
    }
    json_decref(list);
    return rc;
}

/* The path in such a name, cut out in place. */
static int read_filename(char *filename, char **path, struct error *e)
{
    static const char waiting[] = "disconnected:";
    bool free_now = strncmp(filename, waiting, strlen(waiting)) == 0;
    char *at = filename + (free_now ? strlen(waiting) : 0);
    char *server = strstr(at, ",server");
    if (strncmp(at, "unix:", 5) != 0 || strstr(at, ",abstract"))
        return error_set(e, VMSNAP_EXIT_TARGET, EOPNOTSUPP,
                         "the guest agent's port is \"%s\", not a UNIX socket with a path",
                         filename);
    at[strcspn(at, ",")] = '\0';
    *path = at + 5;
    if (!server)
        return error_set(e, VMSNAP_EXIT_TARGET, EOPNOTSUPP,
                         "for the guest agent QEMU connects to %s: whoever listens there has it",
                         *path);
    if (free_now)
        return 0;
    error_set(e, VMSNAP_EXIT_TARGET, EBUSY,
              "another program is connected to the guest agent's socket %s", *path);
    error_hint(e, "a management daemon, say: it can set the clock");
    return -EBUSY;
}

/* By way of the VMM's own root or directory, as it may have another; a descriptor of the socket's
 * place makes any length fit into an address. */
static int dial(int *fd, const char *path, const struct target *t, struct error *e)
{
    char full[PATH_MAX + 64];
    snprintf(full, sizeof(full), "/proc/%d/%s/%s", (int)t->pid, path[0] == '/' ? "root" : "cwd",
             path);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    CLEANUP_FD int place = open(full, O_PATH | O_CLOEXEC);
    CLEANUP_FD int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d", place);
    if (place < 0 || s < 0 || connect(s, (struct sockaddr *)&address, sizeof(address)))
        return error_set(e, VMSNAP_EXIT_TARGET, errno,
                         "can't connect to the guest agent's socket %s", path);
    *fd = take_fd(&s);
    return 0;
}

int agent_open(int *fd, const json_t *described, struct qmp *q, const struct target *t,
               int timeout_ms, struct error *e)
{
    struct qom m = qom_within(q, timeout_ms);
    char label[128] = "", filename[PATH_MAX] = "", *path = NULL;
    int rc = find_chardev(&m, described, label, sizeof(label), e);
    if (rc == 0)
        rc = find_filename(&m, label, filename, sizeof(filename), e);
    if (rc == 0)
        rc = read_filename(filename, &path, e);
    return rc ? rc : dial(fd, path, t, e);
}
