/*
 * qmp_wire.h - the bytes under qmp.c: JSON objects over a stream socket, framed by lines, with a
 * deadline on every wait and a bound on every length. Private to qmp.c.
 */
#ifndef VMSNAP_COMMON_QMP_WIRE_H
#define VMSNAP_COMMON_QMP_WIRE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

/* The longest message taken. `info mtree -f` of a VM with hundreds of devices stays below 1 MiB. */
#define QMP_WIRE_MAX_BYTES (4u << 20)

struct qmp_wire {
    int fd;
    char *buf; /* what was read and not yet taken */
    size_t used, capacity;
    size_t scanned;  /* buf[0, scanned) holds no complete message */
    bool skip_noise; /* lines that are no JSON object are dropped: after a takeover */
};

void qmp_wire_init(struct qmp_wire *w, int fd);
/* Closes the fd too. */
void qmp_wire_close(struct qmp_wire *w);

/*
 * Reads one JSON object; *message is a new reference. 0 or -errno:
 * -ETIMEDOUT (deadline of clock_monotonic_ns() over; what was read is kept), -EPIPE (end of file or
 * reset), -EPROTO (no JSON object, too long, nested too deeply, not UTF-8: the connection is of no
 * more use).
 */
int qmp_wire_receive(struct qmp_wire *w, uint64_t deadline_ns, json_t **message, struct error *e);

/* Until there is something to read, or the end. 0, -ETIMEDOUT, -errno. */
int qmp_wire_wait(const struct qmp_wire *w, uint64_t deadline_ns);

/*
 * Writes bytes, the first of them with `send_fd` (-1: none) as SCM_RIGHTS. On -ETIMEDOUT a part may
 * have been sent: the peer then waits for the rest, until a byte 0xFF clears it.
 */
int qmp_wire_send(struct qmp_wire *w, const void *bytes, size_t len, int send_fd,
                  uint64_t deadline_ns, struct error *e);

#endif
