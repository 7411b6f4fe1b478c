/*
 * qmp.h - a plain QMP client (QEMU machine protocol) on a UNIX socket, one command at a time, every
 * wait with a deadline. JSON by jansson. A peer may be hostile or garbled: line length and
 * nesting are bounded, replies that do not fit are errors with exit code 10 or 17.
 */
#ifndef VMSNAP_COMMON_QMP_H
#define VMSNAP_COMMON_QMP_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"

struct qmp;

/* Only connects: *fd is then the caller's, for qmp_attach_dialled(). Exit code 10 (no such socket,
 * refused), 17 (its backlog stays full). */
int qmp_dial(int *fd, const char *path, int timeout_ms, struct error *e);

/* Connects, reads the greeting, negotiates capabilities. Exit codes: 10 (no such socket, refused,
 * not QMP), 17 (connected but no greeting: another client holds this socket; the hint says to add
 * a second -qmp). */
int qmp_connect(struct qmp **out, const char *path, int timeout_ms, struct error *e);

/* The same on an fd that is connected already (accepted from a VMM that connects to us). On success
 * the fd is q's, on failure it stays the caller's. */
int qmp_attach(struct qmp **out, int fd, int timeout_ms, struct error *e);

/* The same on an fd of qmp_dial(). A Firecracker that says nothing for a second is asked, by empty
 * lines, whether it speaks HTTP: then exit code 10 at once, and the hint names --api. */
int qmp_attach_dialled(struct qmp **out, int fd, int timeout_ms, struct error *e);

/*
 * The same on an fd whose user has died at any point of a command: a byte 0xFF clears what it may
 * have half written, what it did not read is skipped. No negotiation: that is done once per
 * connection. Sends nothing but that byte. The fd as with qmp_attach().
 */
int qmp_take_over(struct qmp **out, int fd, int timeout_ms, struct error *e);

/* What the server said of itself in its greeting ("version" holds {"qemu": ...} or the like):
 * borrowed, NULL on a connection that was taken over. */
const json_t *qmp_greeting(const struct qmp *q);

/* Closes the fd as well, however it came. */
void qmp_close(struct qmp *q);
int qmp_fd(const struct qmp *q);

/* SO_PEERCRED: the process that called listen() (or connect()ed to us). */
int qmp_peer_pid(int fd, pid_t *pid);

/* Its name (/proc/PID/comm, 15 bytes at most), "" where it can't be told. */
#define QMP_PEER_NAME 16
void qmp_peer_name(int fd, char name[QMP_PEER_NAME]);

/*
 * Runs a command. `arguments` (may be NULL) is stolen. *result (may be NULL) gets a new reference
 * to the "return" value. A QMP error reply: -EPROTO with the VMM's class and text in the message.
 * -ETIMEDOUT (exit code 17; its late reply is skipped by the next command), -EPIPE: the VMM has
 * gone (10). After anything that is not QMP every later command fails. Events that arrive are kept.
 * `send_fd` >= 0 travels with the command (SCM_RIGHTS: getfd, add-fd).
 */
int qmp_command(struct qmp *q, const char *command, json_t *arguments, int send_fd, int timeout_ms,
                json_t **result, struct error *e);

/* human-monitor-command: the text is the caller's to free(). */
int qmp_hmp(struct qmp *q, const char *line, int timeout_ms, char **text, struct error *e);

struct qmp_event {
    char name[64];
    int64_t time_us; /* the VMM's own stamp, CLOCK_REALTIME; -1 when it has none */
    json_t *data;    /* may be NULL */
};

/* Takes the oldest kept event of that name, waiting for one; other events stay (256 of them, then
 * the oldest go). -ETIMEDOUT. The caller ends with qmp_event_clear(). */
int qmp_wait_event(struct qmp *q, const char *name, int timeout_ms, struct qmp_event *event,
                   struct error *e);
void qmp_event_clear(struct qmp_event *event);

/* True when the last command failed by an error reply (-EPROTO) of this class
 * ("CommandNotFound", "DeviceNotFound", ...): the connection is as good as before. */
bool qmp_failed_with(const struct qmp *q, const char *error_class);

#endif
