#include "common/http.h"

#include <curl/curl.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"

#define LIBRARY "libcurl.so.4"

/* What is used of the library. */
static struct {
    void *handle;
    CURLcode (*global_init)(long flags);
    CURL *(*easy_init)(void);
    void (*easy_cleanup)(CURL *easy);
    CURLcode (*easy_setopt)(CURL *easy, CURLoption option, ...);
    CURLcode (*easy_getinfo)(CURL *easy, CURLINFO info, ...);
    const char *(*easy_strerror)(CURLcode code);
    CURLM *(*multi_init)(void);
    CURLMcode (*multi_cleanup)(CURLM *multi);
    CURLMcode (*multi_add_handle)(CURLM *multi, CURL *easy);
    CURLMcode (*multi_remove_handle)(CURLM *multi, CURL *easy);
    CURLMcode (*multi_perform)(CURLM *multi, int *running);
    CURLMcode (*multi_poll)(CURLM *multi, struct curl_waitfd *fds, unsigned n, int timeout_ms,
                            int *ready);
    CURLMsg *(*multi_info_read)(CURLM *multi, int *left);
    struct curl_slist *(*slist_append)(struct curl_slist *list, const char *text);
    void (*slist_free_all)(struct curl_slist *list);
} curl;

struct http {
    char *name; /* the socket's path, for messages */
    char *path; /* one that fits into an address */
    int dir_fd; /* that it goes through, or -1 */
    CURLM *multi;
    CURL *easy; /* a request under way */
    struct curl_slist *headers;
    char *body; /* of the reply */
    size_t body_bytes;
    bool too_long;
    bool done;
    bool has_answered; /* a request, once */
};

static bool find(void **function, const char *name)
{
    *function = dlsym(curl.handle, name);
    return *function;
}

static bool find_all(void)
{
    return find((void **)&curl.global_init, "curl_global_init") &&
           find((void **)&curl.easy_init, "curl_easy_init") &&
           find((void **)&curl.easy_cleanup, "curl_easy_cleanup") &&
           find((void **)&curl.easy_setopt, "curl_easy_setopt") &&
           find((void **)&curl.easy_getinfo, "curl_easy_getinfo") &&
           find((void **)&curl.easy_strerror, "curl_easy_strerror") &&
           find((void **)&curl.multi_init, "curl_multi_init") &&
           find((void **)&curl.multi_cleanup, "curl_multi_cleanup") &&
           find((void **)&curl.multi_add_handle, "curl_multi_add_handle") &&
           find((void **)&curl.multi_remove_handle, "curl_multi_remove_handle") &&
           find((void **)&curl.multi_perform, "curl_multi_perform") &&
           find((void **)&curl.multi_poll, "curl_multi_poll") && /* libcurl 7.66 */
           find((void **)&curl.multi_info_read, "curl_multi_info_read") &&
           find((void **)&curl.slist_append, "curl_slist_append") &&
           find((void **)&curl.slist_free_all, "curl_slist_free_all");
}

/* It stays open until the process ends. */
static int open_library(struct error *e)
{
    if (curl.handle)
        return 0;
    curl.handle = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (curl.handle && find_all() && curl.global_init(CURL_GLOBAL_NOTHING) == 0)
        return 0;
    error_set(e, VMSNAP_EXIT_FAILED, ENOENT, "can't open %s (7.66 or later), which --api needs",
              LIBRARY);
    error_hint(e, "install it: on Debian the package libcurl4");
    curl.handle = NULL;
    return -ENOENT;
}

/* The address of a UNIX socket has 107 characters; that of a jailed VMM is often longer. */
static int shorten(struct http *h, const char *path, struct error *e)
{
    if (strlen(path) < sizeof(((struct sockaddr_un *)NULL)->sun_path)) {
        h->path = strdup(path);
        return h->path ? 0 : error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot use %s", path);
    }
    const char *slash = strrchr(path, '/');
    CLEANUP_FREE char *dir = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    h->dir_fd = dir ? open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
    if (h->dir_fd < 0)
        return error_set(e, VMSNAP_EXIT_TARGET, errno, "API socket %s", path);
    if (asprintf(&h->path, "/proc/self/fd/%d/%s", h->dir_fd, slash ? slash + 1 : path) < 0)
        h->path = NULL;
    return h->path ? 0 : error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot use %s", path);
}

int http_open(struct http **out, const char *path, struct error *e)
{
    int ret = open_library(e);
    if (ret)
        return ret;
    struct http *h = calloc(1, sizeof(*h));
    if (!h)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot use %s", path);
    h->dir_fd = -1;
    h->name = strdup(path);
    h->multi = curl.multi_init();
    ret = h->name && h->multi ? shorten(h, path, e)
                              : error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot use %s", path);
    if (ret)
        http_close(h);
    else
        *out = h;
    return ret;
}

int http_dial(const struct http *h, int *fd, int timeout_ms, struct error *e)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", h->path);
    CLEANUP_FD int made = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (made < 0 || setsockopt(made, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)))
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "cannot make a socket");
    if (connect(made, (const struct sockaddr *)&address, sizeof(address))) {
        int err = errno;
        error_set(e, err == EAGAIN ? VMSNAP_EXIT_TIMEOUT : VMSNAP_EXIT_TARGET, err,
                  "cannot connect to the API socket %s", h->name);
        if (err == EACCES || err == EPERM)
            error_hint(e, "to connect takes the right to write to it: run vmsnap as root");
        error_hint(e, "is the VM running, and was it started with --api-sock?");
        return -err;
    }
    *fd = take_fd(&made);
    return 0;
}

/* Drops the request, if there is one, and what came of its reply. */
static void drop(struct http *h)
{
    if (h->easy) {
        curl.multi_remove_handle(h->multi, h->easy);
        curl.easy_cleanup(h->easy);
    }
    curl.slist_free_all(h->headers);
    free(h->body);
    h->easy = NULL;
    h->headers = NULL;
    h->body = NULL;
    h->body_bytes = 0;
    h->too_long = h->done = false;
}

void http_close(struct http *h)
{
    if (!h)
        return;
    drop(h);
    if (h->multi)
        curl.multi_cleanup(h->multi);
    if (h->dir_fd >= 0)
        close(h->dir_fd);
    free(h->name);
    free(h->path);
    free(h);
}

/* CURLOPT_WRITEFUNCTION */
static size_t take_body(char *data, size_t size, size_t n, void *opaque)
{
    struct http *h = opaque;
    size_t bytes = size * n;
    if (bytes > HTTP_REPLY_MAX_BYTES - h->body_bytes) {
        h->too_long = true;
        return 0;
    }
    char *body = realloc(h->body, h->body_bytes + bytes + 1);
    if (!body)
        return 0;
    memcpy(body + h->body_bytes, data, bytes);
    h->body = body;
    h->body_bytes += bytes;
    return bytes;
}

/* The environment (a proxy) and earlier connections have no say. */
static bool set_up(struct http *h, const char *method, const char *target, const char *body)
{
    char url[256];
    if (snprintf(url, sizeof(url), "http://localhost%s", target) >= (int)sizeof(url))
        return false;
    h->headers = curl.slist_append(NULL, "Accept: application/json");
    if (h->headers && body)
        curl.slist_append(h->headers, "Content-Type: application/json");
    return h->headers && !curl.easy_setopt(h->easy, CURLOPT_URL, url) &&
           !curl.easy_setopt(h->easy, CURLOPT_UNIX_SOCKET_PATH, h->path) &&
           !curl.easy_setopt(h->easy, CURLOPT_PROXY, "") &&
           !curl.easy_setopt(h->easy, CURLOPT_NOSIGNAL, 1l) &&
           !curl.easy_setopt(h->easy, CURLOPT_FRESH_CONNECT, 1l) &&
           !curl.easy_setopt(h->easy, CURLOPT_FORBID_REUSE, 1l) &&
           !curl.easy_setopt(h->easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1) &&
           !curl.easy_setopt(h->easy, CURLOPT_CUSTOMREQUEST, method) &&
           !curl.easy_setopt(h->easy, CURLOPT_HTTPHEADER, h->headers) &&
           !curl.easy_setopt(h->easy, CURLOPT_WRITEFUNCTION, take_body) &&
           !curl.easy_setopt(h->easy, CURLOPT_WRITEDATA, h) &&
           (!body || !curl.easy_setopt(h->easy, CURLOPT_COPYPOSTFIELDS, body));
}

int http_begin(struct http *h, const char *method, const char *target, const char *body,
               struct error *e)
{
    drop(h);
    h->easy = curl.easy_init();
    if (!h->easy || !set_up(h, method, target, body) ||
        curl.multi_add_handle(h->multi, h->easy) != CURLM_OK) {
        if (h->easy)
            curl.easy_cleanup(h->easy);
        h->easy = NULL;
        drop(h);
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot ask %s", h->name);
    }
    return 0;
}

static int failed(const struct http *h, CURLcode code, struct error *e)
{
    int err = code == CURLE_COULDNT_CONNECT ? ECONNREFUSED
              : code == CURLE_OUT_OF_MEMORY ? ENOMEM
                                            : EPIPE;
    if (h->too_long) {
        error_set(e, VMSNAP_EXIT_TARGET, EMSGSIZE,
                  "API socket %s: its reply is longer than %u bytes", h->name,
                  HTTP_REPLY_MAX_BYTES);
        error_hint(e, "is it the socket of a Firecracker's --api-sock?");
        return -EMSGSIZE;
    }
    bool no_http = code == CURLE_UNSUPPORTED_PROTOCOL || code == CURLE_WEIRD_SERVER_REPLY;
    error_set(e, VMSNAP_EXIT_TARGET, 0, "API socket %s: %s", h->name,
              no_http ? "what answers there is no HTTP" : curl.easy_strerror(code));
    if (e)
        e->err = err;
    if (h->has_answered)
        error_hint(e, "it answered before: has the VMM ended? Its log tells more");
    else if (code == CURLE_COULDNT_CONNECT)
        error_hint(e, "is the VM running, and was it started with --api-sock %s?", h->name);
    else /* a QMP server greets first, which is no HTTP */
        error_hint(e, "is %s the socket of --api-sock? That of a QEMU's -qmp goes with --qmp",
                   h->name);
    return -err;
}

int http_step(struct http *h, int watched_fd, int timeout_ms, struct error *e)
{
    int running = 0, left;
    struct curl_waitfd watched = {.fd = watched_fd, .events = CURL_WAIT_POLLIN};
    if (h->done)
        return 1;
    CURLMcode code = curl.multi_perform(h->multi, &running);
    if (code == CURLM_OK && running) {
        code = curl.multi_poll(h->multi, &watched, watched_fd >= 0, timeout_ms, NULL);
        if (code == CURLM_OK)
            code = curl.multi_perform(h->multi, &running);
    }
    if (code != CURLM_OK)
        return error_set(e, VMSNAP_EXIT_FAILED, 0, "cannot wait for %s", h->name);
    const CURLMsg *message = curl.multi_info_read(h->multi, &left);
    if (!message || message->msg != CURLMSG_DONE)
        return 0;
    if (message->data.result != CURLE_OK) {
        int ret = failed(h, message->data.result, e);
        drop(h);
        return ret;
    }
    h->done = true;
    return 1;
}

void http_take(struct http *h, struct http_reply *reply)
{
    long status = 0;
    curl.easy_getinfo(h->easy, CURLINFO_RESPONSE_CODE, &status);
    reply->status = (int)status;
    h->has_answered = true;
    reply->body = h->body ? json_loadb(h->body, h->body_bytes, JSON_REJECT_DUPLICATES, NULL) : NULL;
    drop(h);
}

bool http_is_busy(const struct http *h)
{
    return h->easy;
}

int http_call(struct http *h, const char *method, const char *target, const char *body,
              int timeout_ms, struct http_reply *reply, struct error *e)
{
    uint64_t until_ns = clock_monotonic_ns() + (uint64_t)timeout_ms * 1000000u;
    int ret = http_begin(h, method, target, body, e);
    while (!ret && (ret = http_step(h, -1, clock_ms_until(until_ns), e)) == 0)
        if (clock_monotonic_ns() >= until_ns) {
            drop(h);
            error_set(e, VMSNAP_EXIT_TIMEOUT, ETIMEDOUT, "API socket %s: no reply to %s %s",
                      h->name, method, target);
            error_hint(e, "its API thread may be busy with another request, or be stopped: "
                          "--timeout waits longer; or it is a QMP socket that another client "
                          "holds: that goes with --qmp");
            ret = -ETIMEDOUT;
        }
    if (ret < 0)
        return ret;
    http_take(h, reply);
    return 0;
}
