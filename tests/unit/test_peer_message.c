#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "restore/listen/peer_message.h"

#define KIB4 ", \"page_size\": 4096"

static struct peer_message m;
static struct error e;

static int parse(const char *text)
{
    memset(&e, 0, sizeof(e));
    return peer_message_parse(text, strlen(text), &m, &e);
}

/* A message of one region out of its keys. */
static int parse_region(const char *members)
{
    char text[1024];
    snprintf(text, sizeof(text), "[{%s}]", members);
    return parse(text);
}

static void check_refused(int r, const char *why, const char *text)
{
    cr_assert_eq(r, -EPROTO, "%s: %d", text, r);
    cr_assert_eq(e.exit_code, VMSNAP_EXIT_TARGET);
    cr_assert_not_null(strstr(e.message, why), "%s: %s", text, e.message);
    cr_assert(e.hint[0] != '\0');
}

static void check_region(uint32_t i, uint64_t hva, uint64_t bytes, uint64_t offset, uint64_t page)
{
    const struct peer_region *r = &m.regions[i];
    cr_assert_eq(r->hva, hva);
    cr_assert_eq(r->bytes, bytes);
    cr_assert_eq(r->offset, offset);
    cr_assert_eq(r->page_bytes, page);
}

Test(peer_message, the_three_forms_of_the_page_size)
{
    static const char *const forms[] = {"", ", \"page_size_kib\": 4096", KIB4,
                                        KIB4 ", \"page_size_kib\": 4096"};
    for (size_t i = 0; i < 4; i++) {
        char text[256];
        snprintf(text, sizeof(text),
                 "\"base_host_virt_addr\": 65536, \"size\": 131072, \"offset\": 4096%s", forms[i]);
        cr_assert_eq(parse_region(text), 0, "%s: %s", text, e.message);
        cr_assert_eq(m.n_regions, 1);
        check_region(0, 65536, 131072, 4096, 4096);
    }
}

Test(peer_message, several_regions_unknown_keys_and_what_follows)
{
    static const char good[] =
        "\r\n [{\"base_host_virt_addr\":139637976727552,\"size\":3489660928,\"offset\":0,"
        "\"page_size\":2097152,\"page_size_kib\":2097152,\"new\":{\"a\":[1.5,true,null,\"]\\\"}\"]}"
        "},"
        "{\"base_host_virt_addr\":139630000001024,\"size\":4096,\"offset\":3489660928},"
        "{\"offset\":4294967296,\"size\":1073741824,\"page_size\":2097152,"
        "\"base_host_virt_addr\":107374182400}]more";
    cr_assert_eq(parse(good), 0, "%s", e.message);
    cr_assert_eq(m.n_regions, 3);
    check_region(0, 139637976727552, 3489660928, 0, 2097152);
    check_region(2, 107374182400, 1073741824, 4294967296, 2097152);
    cr_assert_str_eq(good + m.used_bytes, "more");
}

Test(peer_message, any_part_of_it_means_read_on)
{
    static const char text[] =
        "[] [{\"base_host_virt_addr\":4096,\"size\":4096,\"offset\":0,\"x\":[true,-1.5e+3,"
        "\"\\u00e4\xc3\xa4\"]},{\"base_host_virt_addr\":8192,\"size\":4096,\"offset\":4096}]";
    for (size_t len = 0; len < sizeof(text) - 1; len++)
        cr_assert_eq(peer_message_parse(text, len, &m, &e), -EAGAIN, "%zu", len);
    cr_assert_eq(parse(text), 0, "%s", e.message);
    cr_assert_eq(m.n_regions, 2);
    cr_assert_eq(m.used_bytes, sizeof(text) - 1);
}

Test(peer_message, an_empty_message_comes_first_but_not_for_ever)
{
    cr_assert_eq(parse("[]"), -EAGAIN);
    cr_assert_eq(parse("[][][][]"), -EAGAIN);
    check_refused(parse("[][][][][]"), "names no region", "[]...");
}

Test(peer_message, what_is_no_array_of_objects)
{
    static const struct {
        const char *text, *why;
    } bad[] = {
        {"{}", "does not begin with '['"},
        {"hello", "does not begin with '['"},
        {"]", "does not begin with '['"},
        {"[}", "is no JSON"},
        {"[{\"size\":\x1b"
         "2J}]",
         "is no JSON"},
        {"[,]", "is no JSON"},
        {"[{\"a\":1,\"a\":1}]", "duplicate"},
        {"[\"\xff\"]", "is no JSON"},
        {"[nil]", "is no JSON"},
        {"[1]", "region 0 is not an object"},
        {"[[]]", "region 0 is not an object"},
        {"[null]", "region 0 is not an object"},
        {"[[[[[[[[[[[[[[[[[[[", "nested too deeply"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        check_refused(parse(bad[i].text), bad[i].why, bad[i].text);
        for (const char *c = e.message; *c; c++)
            cr_assert(*c >= ' ' && *c <= '~', "%s: unprintable", bad[i].text);
    }
}

Test(peer_message, numbers_that_make_no_region)
{
    static const struct {
        const char *base, *size, *offset, *page, *why;
    } bad[] = {
        {"4096", "4096", "\"0\"", "4096", "offset that is not an integer"},
        {"4096", "4096.0", "0", "4096", "size that is not an integer"},
        {"true", "4096", "0", "4096", "base_host_virt_addr that is not an integer"},
        {"4096", "4096", "0", "null", "page_size that is not an integer"},
        {"4096", "4096", "0", "[]", "page_size that is not an integer"},
        {"4096", "4096", "0", "1e400", "is no JSON"},
        {"-4096", "4096", "0", "4096", "a negative base_host_virt_addr"},
        {"4096", "-4096", "0", "4096", "a negative size"},
        {"4096", "4096", "-4096", "4096", "a negative offset"},
        {"9223372036854775808", "4096", "0", "4096", "is no JSON"},
        {"4096", "18446744073709551616", "0", "4096", "is no JSON"},
        {"0", "4096", "0", "4096", "lies at address 0"},
        {"4096", "0", "0", "4096", "has no bytes"},
        {"4097", "4096", "0", "4096", "base_host_virt_addr 4097, which is no multiple"},
        {"4096", "4095", "0", "4096", "size 4095, which is no multiple"},
        {"4096", "4096", "1", "4096", "offset 1, which is no multiple"},
        {"2097152", "4096", "0", "2097152", "size 4096, which is no multiple"},
        {"4096", "2097152", "0", "2097152", "base_host_virt_addr 4096, which is no multiple"},
        {"9223372036854771712", "4096", "0", "4096", "wraps around"},
        {"4096", "9223372036854771712", "0", "4096", "wraps around"},
        {"4096", "8192", "9223372036854767616", "4096", "behind any memory file"},
        {"4096", "4096", "0", "0", "page_size 0"},
        {"4096", "4096", "0", "4", "page_size 4, which is not 4 KiB or 2 MiB"},
        {"1073741824", "1073741824", "0", "1073741824", "which is not 4 KiB or 2 MiB"},
        {"4096", "4096", "0", "4097", "page_size 4097"},
        {"65536", "65536", "0", "65536", "page_size 65536"},
        {"4096", "4096", "0", "4611686018427387904", "page_size 4611686018427387904"},
        {"4096", "4096", "0", "4096, \"page_size_kib\": 2097152", "page sizes that differ"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        char text[512];
        snprintf(text, sizeof(text),
                 "\"base_host_virt_addr\": %s, \"size\": %s, \"offset\": %s, \"page_size\": %s",
                 bad[i].base, bad[i].size, bad[i].offset, bad[i].page);
        check_refused(parse_region(text), bad[i].why, text);
    }
    check_refused(parse_region("\"size\": 4096, \"offset\": 0"), "no base_host_virt_addr", "");
    check_refused(parse_region("\"base_host_virt_addr\": 4096, \"offset\": 0"), "no size", "");
    check_refused(parse_region("\"base_host_virt_addr\": 4096, \"size\": 4096"), "no offset", "");
}

/* Two regions of 8 KiB each. */
static int parse_two(uint64_t hva, uint64_t offset, uint64_t hva2, uint64_t offset2)
{
    char text[512];
    snprintf(text, sizeof(text),
             "[{\"base_host_virt_addr\":%llu,\"size\":8192,\"offset\":%llu},"
             "{\"base_host_virt_addr\":%llu,\"size\":8192,\"offset\":%llu}]",
             (unsigned long long)hva, (unsigned long long)offset, (unsigned long long)hva2,
             (unsigned long long)offset2);
    return parse(text);
}

Test(peer_message, regions_may_touch_but_not_overlap)
{
    cr_assert_eq(parse_two(65536, 0, 73728, 8192), 0, "%s", e.message);
    cr_assert_eq(parse_two(65536, 8192, 57344, 0), 0, "%s", e.message);
    check_refused(parse_two(65536, 0, 69632, 8192), "region 1 overlaps region 0 in the VMM", "");
    check_refused(parse_two(65536, 0, 61440, 8192), "overlaps region 0 in the VMM", "");
    check_refused(parse_two(65536, 0, 65536, 0), "overlaps region 0 in the VMM", "");
    check_refused(parse_two(65536, 4096, 131072, 8192), "overlaps region 0 in the memory", "");
    check_refused(parse_two(65536, 4096, 131072, 4096), "overlaps region 0 in the memory", "");
}

/* As many regions as asked for, side by side. To be freed. */
static char *many_regions(unsigned n)
{
    char *text = malloc(n * 96 + 2), *at = text;
    cr_assert_not_null(text);
    for (unsigned i = 0; i < n; i++)
        at += sprintf(at, "%c{\"base_host_virt_addr\":%u,\"size\":4096,\"offset\":%u}",
                      i ? ',' : '[', (i + 1) * 4096, i * 4096);
    sprintf(at, "]");
    return text;
}

Test(peer_message, there_is_a_bound_to_regions)
{
    char *text = many_regions(PEER_MESSAGE_MAX_REGIONS);
    cr_assert_eq(parse(text), 0, "%s", e.message);
    cr_assert_eq(m.n_regions, PEER_MESSAGE_MAX_REGIONS);
    free(text);
    text = many_regions(PEER_MESSAGE_MAX_REGIONS + 1);
    check_refused(parse(text), "more than 256 regions", "many");
    free(text);
}

Test(peer_message, there_is_a_bound_to_bytes)
{
    char *text = malloc(PEER_MESSAGE_MAX_BYTES + 100);
    cr_assert_not_null(text);
    memset(text, ' ', PEER_MESSAGE_MAX_BYTES + 100);
    cr_assert_eq(peer_message_parse(text, PEER_MESSAGE_MAX_BYTES - 1, &m, &e), -EAGAIN);
    for (size_t more = 0; more < 100; more += 99)
        check_refused(peer_message_parse(text, PEER_MESSAGE_MAX_BYTES + more, &m, &e),
                      "longer than 64 KiB", "blanks");
    text[0] = '[', text[1] = '"';
    check_refused(peer_message_parse(text, PEER_MESSAGE_MAX_BYTES, &m, &e), "longer than 64 KiB",
                  "a long text");
    free(text);
}
