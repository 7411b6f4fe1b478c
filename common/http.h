/*
 * http.h - requests over a UNIX socket, one at a time, each with a deadline and on a connection of
 * its own: one that was cut short disturbs none that follow. By libcurl, which is opened when it is
 * first needed: nobody else has to wait for all that it is linked with. Replies are bounded.
 */
#ifndef VMSNAP_COMMON_HTTP_H
#define VMSNAP_COMMON_HTTP_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

#define HTTP_REPLY_MAX_BYTES (1u << 20)

struct http;

/* Nothing is sent yet. Exit codes 1 (no libcurl), 10 (no such socket). The path is kept. */
int http_open(struct http **out, const char *path, struct error *e);
void http_close(struct http *h); /* NULL is allowed; drops a request under way */

/* A plain connection, to see who listens: *fd is the caller's. */
int http_dial(const struct http *h, int *fd, int timeout_ms, struct error *e);

struct http_reply {
    int status;   /* 200, ... */
    json_t *body; /* new reference; NULL: none, or no JSON */
};

/*
 * A request and its reply. `body`: JSON text or NULL. Exit codes 10 (refused, cut off, no HTTP), 17
 * (no reply within the time: the request may have been taken all the same).
 */
int http_call(struct http *h, const char *method, const char *target, const char *body,
              int timeout_ms, struct http_reply *reply, struct error *e);

/* The same in steps, for what the other side is to be watched at meanwhile. After http_begin() wait
 * until http_step() returns 1: then the reply is there for http_take(). 0: after timeout_ms, or
 * sooner when `watched_fd` (or -1) is readable. -errno: it failed, *e says how. */
int http_begin(struct http *h, const char *method, const char *target, const char *body,
               struct error *e);
int http_step(struct http *h, int watched_fd, int timeout_ms, struct error *e);
void http_take(struct http *h, struct http_reply *reply);

/* Whether a request has begun whose reply was not taken. */
bool http_is_busy(const struct http *h);

#endif
