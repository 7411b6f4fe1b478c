#include <criterion/criterion.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "tools/vmsnap/closing.h"
#include "tools/vmsnap/report.h"

/* Collects what `say` reports as a string. */
static char *collect(bool json, bool quiet, void (*say)(void))
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    cr_assert_not_null(f);
    report_setup(json, quiet);
    report_to_stream(f);
    say();
    cr_assert_eq(report_finish(), 0);
    fclose(f);
    return text;
}

static void say_all(void)
{
    report_object("summary", json_pack("{s:i}", "pages_checked", 7));
    report_line("%s has %d pages", "image", 7);
    report_closing("done");
}

Test(report, text_mode_has_no_json)
{
    char *text CLEANUP_FREE = collect(false, false, say_all);
    cr_assert_str_eq(text, "image has 7 pages\ndone\n");
}

Test(report, quiet_leaves_out_the_closing_line)
{
    char *text CLEANUP_FREE = collect(false, true, say_all);
    cr_assert_str_eq(text, "image has 7 pages\n");
}

Test(report, json_mode_has_one_object_per_line_and_no_text)
{
    char *text CLEANUP_FREE = collect(true, false, say_all);
    cr_assert_str_eq(text, "{\"type\":\"summary\",\"schema_version\":1,\"pages_checked\":7}\n");
}

Test(report, a_result_that_can_not_be_written_is_noticed)
{
    FILE *full = fopen("/dev/full", "w");
    cr_assert_not_null(full);
    report_setup(false, false);
    report_to_stream(full);
    report_line("lost");
    cr_assert_eq(report_finish(), -28 /* ENOSPC */);
    fclose(full);
}

static void string_becomes(const char *in, const char *expected)
{
    json_t *s = report_string(in);
    cr_assert_not_null(s);
    cr_assert_str_eq(json_string_value(s), expected);
    json_decref(s);
}

Test(report, strings_that_are_not_utf8_are_mended)
{
    string_becomes("/srv/caf\xc3\xa9", "/srv/caf\xc3\xa9");
    string_becomes("/srv/caf\xe9.img", "/srv/caf\xef\xbf\xbd.img");
    string_becomes("\xc0\x80", "\xef\xbf\xbd\xef\xbf\xbd");                       /* overlong */
    string_becomes("\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");       /* surrogate */
    string_becomes("end\xf0\x9f\x98", "end\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"); /* cut off */
    string_becomes("\xff\xf0\x9f\x98\x80", "\xef\xbf\xbd\xf0\x9f\x98\x80");
}

static json_t *summary;

static void say_closing(void)
{
    closing_snapshot(summary);
}

/* The closing line of a snapshot whose summary differs from an ordinary one in `changes`. */
static void closing_is(const char *changes, const char *expected)
{
    summary = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:s}", "pause_ns", (json_int_t)3100000,
                        "wall_ns", (json_int_t)3900000000, "ram_bytes", (json_int_t)4 << 30,
                        "image_bytes", (json_int_t)1193046471, "write_faults", (json_int_t)2210,
                        "fault_p99_ns", (json_int_t)71000, "accelerator", "kvm", "guest_state",
                        "running");
    json_t *more = json_loads(changes, 0, NULL);
    cr_assert_eq(json_object_update(summary, more), 0);
    json_decref(more);
    char *text CLEANUP_FREE = collect(false, false, say_closing);
    cr_assert_str_eq(text, expected);
    json_decref(summary);
}

Test(report, the_closing_line_is_as_published)
{
    closing_is("{}", "paused 3.1 ms (KVM); 4.0 GiB RAM, 1.1 GiB stored (3.6:1) in 3.9 s; "
                     "2210 write faults, p99 71 us; guest running\n");
}

Test(report, the_closing_line_fits_other_guests)
{
    closing_is("{\"guest_state\": \"paused\", \"write_faults\": 0, \"accelerator\": \"tcg\"}",
               "was paused already (TCG); 4.0 GiB RAM, 1.1 GiB stored (3.6:1) in 3.9 s; "
               "0 write faults; guest paused\n");
    closing_is("{\"write_faults\": 1, \"image_bytes\": 0}",
               "paused 3.1 ms (KVM); 4.0 GiB RAM, 0 B stored (0.0:1) in 3.9 s; "
               "1 write fault, p99 71 us; guest running\n");
}

Test(report, a_hint_that_was_just_given_is_not_repeated)
{
    struct error first = {.exit_code = 13, .message = "one", .hint = "look"};
    struct error second = {.exit_code = 13, .message = "two", .hint = "look"};
    char text[512];
    int fds[2];
    cr_assert_eq(pipe(fds), 0);
    cr_assert_eq(dup2(fds[1], STDERR_FILENO), STDERR_FILENO);
    report_setup(false, false);
    report_error(&first, false);
    report_error(&second, false);
    ssize_t n = read(fds[0], text, sizeof(text) - 1);
    text[n > 0 ? n : 0] = '\0';
    cr_assert_str_eq(text, "vmsnap: error: one\nvmsnap: hint: look\nvmsnap: error: two\n");
}
