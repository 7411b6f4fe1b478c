/* api.h - Firecracker's HTTP API over a UNIX socket, as far as a snapshot needs it (README.md). */
#ifndef MINIVM_API_H
#define MINIVM_API_H

#include <poll.h>

#include "control.h"

#define API_CONNECTIONS 10u /* as Firecracker's server has */
#define API_POLLED (API_CONNECTIONS + 1)

/* What it says of itself: the version whose API this is. */
#define API_VERSION "1.17.0-minivm"

struct api;

/* Listens. A VM that is stopped or goes on by it is told of to those on the control socket. */
struct api *api_open(struct control *c, const char *path, char *why, size_t why_bytes);
void api_close(struct api *a);

/* What to poll for, and what to do then: in the main thread, which a request may keep. */
void api_poll(const struct api *a, struct pollfd p[API_POLLED]);
void api_serve(struct api *a, const struct pollfd p[API_POLLED]);

#endif
