/*
 * endpoint.h - what an option of a QEMU command line opens: sockets it listens on, files it
 * truncates. Found in every place where QEMU takes a character device, a display or a network
 * backend.
 */
#ifndef VMSNAP_RESTORE_QEMU_ENDPOINT_H
#define VMSNAP_RESTORE_QEMU_ENDPOINT_H

#include <stdbool.h>
#include <stddef.h>

#include "restore/launch/qemu/line.h"

enum endpoint_kind {
    ENDPOINT_UNIX_LISTEN, /* path */
    ENDPOINT_TCP_LISTEN,  /* host (may be empty: any), port */
    ENDPOINT_TRUNCATE,    /* path: opened for writing from its start */
};

struct endpoint {
    enum endpoint_kind kind;
    char *path;
    char *host;
    char *port;
    bool waits;    /* a listening socket that holds the start up until somebody connects */
    bool abstract; /* a name in the abstract namespace, not a path */
};

struct endpoint_list {
    struct endpoint *items;
    size_t count;
};

/* Appends what one option opens. 0 or -ENOMEM. */
int endpoints_of_option(struct endpoint_list *list, const struct qemu_option *o);
void endpoint_list_free(struct endpoint_list *list);

#endif
