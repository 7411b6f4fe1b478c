/*
 * http.h - as much of HTTP/1.1 as Firecracker's API needs: requests with a body of known length,
 * one after the other on a connection. Everything is bounded; nothing here knows of the VM.
 */
#ifndef MINIVM_HTTP_H
#define MINIVM_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define HTTP_MAX_HEAD 8192u
#define HTTP_MAX_BODY 51200u /* Firecracker's default limit */

struct http_request {
    char method[8], path[256];
    size_t head_bytes, body_bytes; /* the body follows the head */
    bool expects_continue;
};

enum http_verdict { HTTP_MORE, HTTP_HEAD, HTTP_WHOLE, HTTP_BAD };

/*
 * Looks at the `used` bytes of a connection that were not taken yet. HTTP_MORE: the head is not
 * complete. HTTP_HEAD: it is, but not the body; HTTP_WHOLE: both. HTTP_BAD: `why` says what is
 * wrong, and nothing that follows can be understood.
 */
enum http_verdict http_parse(const char *data, size_t used, struct http_request *r,
                             const char **why);

/* A response with its head. `body`: NULL for none. The length, or -1 if `room` is too little. */
ssize_t http_format(char *out, size_t room, int status, const char *body);

#endif
