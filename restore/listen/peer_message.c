/*
 * Where the array ends is found by counting brackets outside of strings, and only the whole of it
 * is given to jansson: asked about the first half of "true" or "1.5" jansson says "invalid token",
 * which can't be told from garbage. The count bounds the depth as well. Brackets that do not pair
 * up end the count too early at worst, and jansson refuses what it is then given.
 */
#include "restore/listen/peer_message.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define MAX_DEPTH 16u
#define MAX_EMPTY 4u /* messages without a region before the one that counts */

#define KIB UINT64_C(1024)
#define MIB (KIB * KIB)

static int refuse(struct error *e, const char *what)
{
    int r = error_set(e, VMSNAP_EXIT_TARGET, EPROTO, "the handoff message %s", what);
    error_hint(e, "send what Firecracker sends: a JSON array of its memory regions");
    return r;
}

static int refuse_region(struct error *e, size_t i, const char *what)
{
    char text[256];
    snprintf(text, sizeof(text), "is refused: region %zu %s", i, what);
    return refuse(e, text);
}

static int refuse_number(struct error *e, size_t i, const char *key, uint64_t value,
                         const char *what)
{
    char text[160];
    snprintf(text, sizeof(text), "has %s %" PRIu64 ", %s", key, value, what);
    return refuse_region(e, i, text);
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* The length of the array at s[0] == '['. 0: it is not complete; -1: nested too deeply. */
static ssize_t array_bytes(const char *s, size_t len)
{
    unsigned depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < len; i++) {
        if (in_string && s[i] == '\\')
            i++;
        else if (s[i] == '"')
            in_string = !in_string;
        else if (in_string)
            continue;
        else if (s[i] == '[' || s[i] == '{')
            depth++;
        else if ((s[i] == ']' || s[i] == '}') && --depth == 0)
            return (ssize_t)(i + 1);
        if (depth > MAX_DEPTH)
            return -1;
    }
    return 0;
}

/* Takes a number of bytes out of a region's object. */
static int take_number(const json_t *object, size_t i, const char *key, uint64_t *out,
                       struct error *e)
{
    char text[160];
    const json_t *number = json_object_get(object, key);
    if (json_is_integer(number) && json_integer_value(number) >= 0) {
        *out = (uint64_t)json_integer_value(number);
        return 0;
    }
    if (json_is_integer(number))
        snprintf(text, sizeof(text), "has a negative %s", key);
    else if (number)
        snprintf(text, sizeof(text), "has a %s that is not an integer", key);
    else
        snprintf(text, sizeof(text), "has no %s", key);
    return refuse_region(e, i, text);
}

/* In all three forms. */
static int take_page_bytes(const json_t *object, size_t i, uint64_t *out, struct error *e)
{
    static const char *const keys[] = {"page_size", "page_size_kib"};
    uint64_t seen = 0;
    for (size_t k = 0; k < 2; k++) {
        uint64_t bytes;
        if (!json_object_get(object, keys[k]))
            continue;
        if (take_number(object, i, keys[k], &bytes, e) < 0)
            return -EPROTO;
        /* Firecracker has no others. What is said of huge pages can't be told from the truth. */
        if (bytes != 4 * KIB && bytes != 2 * MIB)
            return refuse_number(e, i, keys[k], bytes, "which is not 4 KiB or 2 MiB");
        if (seen && seen != bytes)
            return refuse_region(e, i, "has two page sizes that differ");
        seen = bytes;
    }
    *out = seen ? seen : 4 * KIB;
    return 0;
}

static int check_region(const struct peer_region *r, size_t i, struct error *e)
{
    const struct {
        const char *key;
        uint64_t value;
    } of_pages[] = {{"base_host_virt_addr", r->hva}, {"size", r->bytes}, {"offset", r->offset}};
    for (size_t k = 0; k < sizeof(of_pages) / sizeof(of_pages[0]); k++)
        if (of_pages[k].value % r->page_bytes != 0)
            return refuse_number(e, i, of_pages[k].key, of_pages[k].value,
                                 "which is no multiple of its page size");
    if (r->bytes == 0)
        return refuse_region(e, i, "has no bytes");
    if (r->hva == 0)
        return refuse_region(e, i, "lies at address 0");
    if (r->hva > INT64_MAX - r->bytes)
        return refuse_number(e, i, "size", r->bytes, "which wraps around the address space");
    if (r->offset > INT64_MAX - r->bytes)
        return refuse_number(e, i, "size", r->bytes, "which ends behind any memory file");
    return 0;
}

static int take_region(const json_t *object, size_t i, struct peer_region *r, struct error *e)
{
    if (!json_is_object(object))
        return refuse_region(e, i, "is not an object");
    if (take_number(object, i, "base_host_virt_addr", &r->hva, e) < 0 ||
        take_number(object, i, "size", &r->bytes, e) < 0 ||
        take_number(object, i, "offset", &r->offset, e) < 0 ||
        take_page_bytes(object, i, &r->page_bytes, e) < 0)
        return -EPROTO;
    return check_region(r, i, e);
}

static bool ranges_meet(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes)
{
    return a < b + b_bytes && b < a + a_bytes;
}

/* Of region `i`, with those before it. */
static int check_overlap(const struct peer_region *all, size_t i, struct error *e)
{
    const struct peer_region *r = &all[i];
    for (size_t k = 0; k < i; k++) {
        char text[80];
        bool in_vmm = ranges_meet(r->hva, r->bytes, all[k].hva, all[k].bytes);
        if (!in_vmm && !ranges_meet(r->offset, r->bytes, all[k].offset, all[k].bytes))
            continue;
        snprintf(text, sizeof(text), "overlaps region %zu in the %s", k,
                 in_vmm ? "VMM" : "memory file");
        return refuse_region(e, i, text);
    }
    return 0;
}

static int take_regions(const json_t *array, struct peer_message *out, struct error *e)
{
    size_t n = json_array_size(array);
    if (n > PEER_MESSAGE_MAX_REGIONS)
        return refuse(e, "names more than 256 regions");
    for (size_t i = 0; i < n; i++) {
        int r = take_region(json_array_get(array, i), i, &out->regions[i], e);
        if (r == 0)
            r = check_overlap(out->regions, i, e);
        if (r < 0)
            return r;
    }
    out->n_regions = (uint32_t)n;
    return 0;
}

/* jansson quotes what the peer sent, which may be meant for a terminal. */
static void make_printable(char *text)
{
    for (; *text; text++)
        if (*text < ' ' || *text > '~')
            *text = '?';
}

/* Reads one array that is there as a whole. */
static int read_array(const char *s, size_t len, struct peer_message *out, struct error *e)
{
    json_error_t je;
    json_t *array = json_loadb(s, len, JSON_REJECT_DUPLICATES, &je);
    if (!array && json_error_code(&je) == json_error_out_of_memory)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot read the handoff message");
    if (!array) {
        char text[256];
        snprintf(text, sizeof(text), "is no JSON, at byte %d: %s", je.position, je.text);
        make_printable(text);
        return refuse(e, text);
    }
    int r = take_regions(array, out, e);
    json_decref(array);
    return r;
}

int peer_message_parse(const void *bytes, size_t len, struct peer_message *out, struct error *e)
{
    const char *s = bytes;
    size_t at = 0;
    unsigned n_empty = 0;
    if (len > PEER_MESSAGE_MAX_BYTES)
        len = PEER_MESSAGE_MAX_BYTES;
    for (;;) {
        while (at < len && is_blank(s[at]))
            at++;
        if (at < len && s[at] != '[')
            return refuse(e, "does not begin with '['");
        ssize_t n = array_bytes(s + at, len - at);
        if (n < 0)
            return refuse(e, "is nested too deeply");
        if (n == 0)
            return len < PEER_MESSAGE_MAX_BYTES ? -EAGAIN : refuse(e, "is longer than 64 KiB");
        int r = read_array(s + at, (size_t)n, out, e);
        at += (size_t)n;
        if (r < 0 || out->n_regions > 0) {
            out->used_bytes = at;
            return r;
        }
        if (++n_empty > MAX_EMPTY)
            return refuse(e, "names no region");
    }
}
