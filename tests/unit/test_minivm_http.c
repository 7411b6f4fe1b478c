/* The HTTP parser of minivm's API, in buffers of exactly the bytes that are there: ASan sees each
 * byte that is read behind them. */
#include <criterion/criterion.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tools/minivm/http.h"

static struct http_request r;

static enum http_verdict parse(const char *text, size_t bytes)
{
    const char *why = "";
    char *exact = malloc(bytes + !bytes);
    cr_assert_not_null(exact);
    memcpy(exact, text, bytes);
    enum http_verdict v = http_parse(exact, bytes, &r, &why);
    free(exact);
    cr_assert((v == HTTP_BAD) == (why != NULL && v != HTTP_MORE), "a reason for what is bad only");
    if (v == HTTP_WHOLE || v == HTTP_HEAD) {
        cr_assert_leq(r.head_bytes, bytes);
        cr_assert_leq(r.head_bytes, HTTP_MAX_HEAD);
        cr_assert_leq(r.body_bytes, HTTP_MAX_BODY);
        cr_assert_eq(v == HTTP_WHOLE, bytes - r.head_bytes >= r.body_bytes);
    }
    return v;
}

static const char request[] = "PUT /snapshot/create HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n"
                              "Expect: 100-continue\r\n\r\n{\"a\":1}";

Test(minivm_http, whole)
{
    cr_assert_eq(parse(request, sizeof(request) - 1), HTTP_WHOLE);
    cr_assert_str_eq(r.method, "PUT");
    cr_assert_str_eq(r.path, "/snapshot/create");
    cr_assert_eq(r.body_bytes, 7);
    cr_assert_eq(r.head_bytes, sizeof(request) - 8);
    cr_assert(r.expects_continue);
}

Test(minivm_http, pieces)
{
    for (size_t n = 0; n < sizeof(request) - 1; n++)
        cr_assert_eq(parse(request, n), n < sizeof(request) - 8 ? HTTP_MORE : HTTP_HEAD, "%zu", n);
    cr_assert_eq(parse("GET / HTTP/1.1\r\n\r\nGET", 21), HTTP_WHOLE);
    cr_assert_eq(r.body_bytes, 0);
}

Test(minivm_http, bad)
{
    static const char *const bad[] = {
        "\r\n\r\n",
        " / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1 \r\n\r\n",
        "GET / HTTP/1.12\r\n\r\n",
        "GET /\r\n\r\n",
        "GET  HTTP/1.1\r\n\r\n",
        "GET x HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\n: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nA\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: \r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: 1 2\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: 51201\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: 1\r\ncontent-length: 2\r\n\r\n",
        "GET / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        cr_assert_eq(parse(bad[i], strlen(bad[i])), HTTP_BAD, "%s", bad[i]);
    const char *same = "GET / HTTP/1.1\r\nContent-Length: 0\r\ncontent-length:\t0 \r\n\r\n";
    cr_assert_eq(parse(same, strlen(same)), HTTP_WHOLE);
}

Test(minivm_http, long_head)
{
    static char head[HTTP_MAX_HEAD + 10];
    memset(head, 'a', sizeof(head));
    memcpy(head, "GET / HTTP/1.1\r\nA: ", 19);
    cr_assert_eq(parse(head, HTTP_MAX_HEAD - 1), HTTP_MORE);
    cr_assert_eq(parse(head, HTTP_MAX_HEAD), HTTP_BAD);
    memcpy(head + HTTP_MAX_HEAD - 4, "\r\n\r\n", 4);
    cr_assert_eq(parse(head, sizeof(head)), HTTP_WHOLE, "the longest");
}

/* Bytes of a good request changed, repeated and cut at random, always the same way. */
Test(minivm_http, garbled)
{
    uint64_t x = 1;
    for (int i = 0; i < 200000; i++) {
        char text[2 * sizeof(request)];
        size_t n = sizeof(request) - 1;
        memcpy(text, request, n);
        for (int changes = 0; changes < 4; changes++) {
            x = x * 6364136223846793005ull + 1442695040888963407ull;
            size_t at = (size_t)(x >> 33) % n, from = (size_t)(x >> 13) % n;
            if (x >> 62 == 0)
                n = at + 1;
            else if (x >> 62 == 1)
                text[at] = (char)(x >> 20);
            else
                text[at] = text[from];
        }
        parse(text, n);
    }
}

Test(minivm_http, responses)
{
    char out[200];
    cr_assert_eq(http_format(out, sizeof(out), 204, NULL), (ssize_t)strlen(out));
    cr_assert_str_eq(out, "HTTP/1.1 204 \r\nServer: Firecracker API\r\n"
                          "Connection: keep-alive\r\n\r\n");
    cr_assert_eq(http_format(out, sizeof(out), 200, "{}"), (ssize_t)strlen(out));
    cr_assert_not_null(strstr(out, "\r\nContent-Length: 2\r\n\r\n{}"));
    cr_assert_eq(http_format(out, 40, 204, NULL), -1);
}
