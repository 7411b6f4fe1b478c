/*
 * qmp_server.h - the QMP client against a server that the test plays itself: what it says is put
 * into one end of a socket pair beforehand (ids are predictable: "vmsnap-PID-N"), or by a child
 * where it is too much for the socket's buffer.
 */
#ifndef VMSNAP_TESTS_QMP_SERVER_H
#define VMSNAP_TESTS_QMP_SERVER_H

#include <jansson.h>

#include "common/qmp.h"

#define GREETING "{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n"
#define LONG_MS 5000
#define SHORT_MS 100

extern struct qmp *q;
extern struct error err;
extern int server_fd, client_fd; /* both ends; -1: closed */

/* A pair of connected sockets, nothing said yet. */
void server_open(void);

/* A connection on which command 1, qmp_capabilities, is done. */
void server_greets(void);

void server_write(const char *bytes, size_t len);

/* A line. */
__attribute__((format(printf, 1, 2))) void server_say(const char *fmt, ...);

/* The reply to command `id` of this process. */
void server_say_reply(int id, const char *value);

/* The server is a child from now on, which runs `say_it` for ever. */
void server_fork(void (*say_it)(void));

/* query-status: qmp_command()'s result. */
int ask(int timeout_ms, json_t **result);

/* For TestSuite(.fini). */
void server_tidy(void);

#endif
