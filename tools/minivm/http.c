/*
 * http.c - see http.h. A response has the headers that Firecracker's server (micro-http) writes: no
 * reason phrase, the connection stays open, no length for 100 and 204.
 */
#include "http.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

/* The next word of a line that ends at `end`, into `out`; where the line goes on, or NULL if the
 * word is empty, too long or has a byte in it that is not printable. */
static const char *take_word(const char *p, const char *end, char *out, size_t room)
{
    size_t n = 0;
    while (p + n < end && p[n] != ' ') {
        if (n + 1 >= room || p[n] <= ' ' || p[n] >= 0x7f)
            return NULL;
        out[n] = p[n];
        n++;
    }
    out[n] = 0;
    return n == 0 ? NULL : p + n < end ? p + n + 1 : end;
}

static bool parse_request_line(const char *p, const char *end, struct http_request *r)
{
    char version[9];
    p = take_word(p, end, r->method, sizeof(r->method));
    p = p ? take_word(p, end, r->path, sizeof(r->path)) : NULL;
    p = p ? take_word(p, end, version, sizeof(version)) : NULL;
    return p && p == end && end[-1] != ' ' && r->path[0] == '/' &&
           (strcmp(version, "HTTP/1.1") == 0 || strcmp(version, "HTTP/1.0") == 0);
}

/* Decimal digits and nothing else, at most HTTP_MAX_BODY. */
static bool parse_length(const char *p, const char *end, size_t *length)
{
    size_t value = 0;
    bool ok = p < end;
    for (; ok && p < end; p++) {
        ok = *p >= '0' && *p <= '9';
        value = value * 10 + (size_t)(*p - '0');
        ok = ok && value <= HTTP_MAX_BODY;
    }
    *length = value;
    return ok;
}

static bool is_name(const char *line, const char *colon, const char *name)
{
    return (size_t)(colon - line) == strlen(name) && strncasecmp(line, name, strlen(name)) == 0;
}

/* NULL, or what is wrong with this header line. */
static const char *parse_header(const char *line, const char *end, struct http_request *r,
                                bool *has_length)
{
    const char *colon = memchr(line, ':', (size_t)(end - line)), *value;
    size_t length;
    if (!colon || colon == line || memchr(line, 0, (size_t)(end - line)))
        return "Invalid header.";
    for (value = colon + 1; value < end && (*value == ' ' || *value == '\t');)
        value++;
    while (end > value && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    if (is_name(line, colon, "Transfer-Encoding"))
        return "Unsupported header: Transfer-Encoding.";
    if (is_name(line, colon, "Expect"))
        r->expects_continue = end - value == 12 && strncasecmp(value, "100-continue", 12) == 0;
    if (!is_name(line, colon, "Content-Length"))
        return NULL;
    if (!parse_length(value, end, &length) || (*has_length && length != r->body_bytes))
        return "Invalid Content-Length.";
    *has_length = true;
    r->body_bytes = length;
    return NULL;
}

static const char *parse_head(const char *p, const char *end, struct http_request *r)
{
    const char *line_end = memmem(p, (size_t)(end - p), "\r\n", 2), *why = NULL;
    bool has_length = false;
    if (!parse_request_line(p, line_end, r))
        return "Invalid request line.";
    for (p = line_end + 2; !why && p < end; p = line_end + 2) {
        line_end = memmem(p, (size_t)(end - p), "\r\n", 2);
        why = parse_header(p, line_end, r, &has_length);
    }
    return why;
}

enum http_verdict http_parse(const char *data, size_t used, struct http_request *r,
                             const char **why)
{
    size_t limit = used < HTTP_MAX_HEAD ? used : HTTP_MAX_HEAD;
    const char *end = memmem(data, limit, "\r\n\r\n", 4);
    *r = (struct http_request){0};
    *why = "The head of the request is too long.";
    if (!end)
        return used < HTTP_MAX_HEAD ? HTTP_MORE : HTTP_BAD;
    *why = parse_head(data, end + 2, r);
    if (*why)
        return HTTP_BAD;
    r->head_bytes = (size_t)(end - data) + 4;
    return used - r->head_bytes >= r->body_bytes ? HTTP_WHOLE : HTTP_HEAD;
}

ssize_t http_format(char *out, size_t room, int status, const char *body)
{
    int n;
    if (body)
        n = snprintf(out, room,
                     "HTTP/1.1 %d \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
                     "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                     status, strlen(body), body);
    else
        n = snprintf(out, room,
                     "HTTP/1.1 %d \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n",
                     status);
    return n < 0 || (size_t)n >= room ? -1 : n;
}
