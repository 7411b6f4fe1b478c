#include <criterion/criterion.h>
#include <unistd.h>

#include "restore/serve/fill_progress.h"

#define MIB (1u << 20)

static struct fill_progress of_8_mib(bool periodic)
{
    struct fill_progress p = {.total_bytes = 8 * MIB, .periodic = periodic};
    progress_start(&p.line, "filled", false);
    p.reported_ns = p.line.samples[0].ns;
    return p;
}

static struct server_stats filled(uint64_t bytes)
{
    return (struct server_stats){.counts.pages_filled = bytes / IMAGE_PAGE_BYTES};
}

static json_int_t number(const json_t *o, const char *key)
{
    return json_integer_value(json_object_get(o, key));
}

Test(fill_progress, an_object_is_due_once_a_second_while_something_changes)
{
    struct fill_progress p = of_8_mib(true), silent = of_8_mib(false);
    struct server_stats s = filled(MIB);
    cr_assert_not(fill_progress_update(&p, &s, false), "at once");
    usleep(1010000);
    cr_assert(fill_progress_update(&p, &s, false), "after a second");
    cr_assert_not(fill_progress_update(&silent, &s, false), "of --no-fill");
    s = filled(2 * MIB);
    cr_assert_not(fill_progress_update(&p, &s, false), "at once again");
    usleep(1010000);
    s = filled(MIB);
    cr_assert_not(fill_progress_update(&p, &s, false), "nothing has changed since the object");
}

Test(fill_progress, the_object_says_how_far)
{
    struct fill_progress p = of_8_mib(false);
    struct server_stats s = filled(2 * MIB);
    p.already_bytes = MIB;
    progress_request();
    cr_assert(fill_progress_update(&p, &s, false), "asked");
    json_t *o = fill_progress_describe(&p, &s);
    cr_assert_eq(number(o, "done_bytes"), 3 * MIB);
    cr_assert_eq(number(o, "total_bytes"), 8 * MIB);
    cr_assert(json_is_null(json_object_get(o, "remaining_ns")), "nothing to tell it from");
    json_decref(o);
}

Test(fill_progress, it_ends_at_the_whole)
{
    struct fill_progress p = of_8_mib(false);
    struct server_stats much = filled(100 * MIB), less = filled(7 * MIB);
    progress_request();
    fill_progress_update(&p, &much, false);
    json_t *o = fill_progress_describe(&p, &much);
    cr_assert_eq(number(o, "done_bytes"), 8 * MIB,
                 "zero clusters that were demanded count as well");
    json_decref(o);
    progress_request();
    fill_progress_update(&p, &less, true);
    o = fill_progress_describe(&p, &less);
    cr_assert_eq(number(o, "done_bytes"), 8 * MIB, "what was discarded does not come in");
    cr_assert_eq(number(o, "remaining_ns"), 0);
    json_decref(o);
}

Test(fill_progress, damage_is_not_done_and_has_no_end)
{
    struct fill_progress p = of_8_mib(false);
    struct server_stats s = filled(8 * MIB); /* pages that were all zeros among them */
    s.counts.clusters_damaged = MIB / IMAGE_CLUSTER_BYTES;
    s.stage = SERVER_INCOMPLETE;
    s.guest_waits = true;
    p.line.bytes_per_s = MIB;
    progress_request();
    fill_progress_update(&p, &s, false);
    json_t *o = fill_progress_describe(&p, &s);
    cr_assert_eq(number(o, "done_bytes"), 7 * MIB);
    cr_assert(json_is_null(json_object_get(o, "remaining_ns")), "nothing more will come");
    cr_assert_str_eq(p.line.note, "1.0 MiB can't be restored; guest waits");
    json_decref(o);
}

Test(fill_progress, nothing_is_foretold_where_only_what_is_touched_comes_in)
{
    struct fill_progress p = of_8_mib(false);
    struct server_stats s = filled(MIB);
    p.line.bytes_per_s = MIB;
    p.on_demand = true;
    progress_request();
    fill_progress_update(&p, &s, false);
    json_t *o = fill_progress_describe(&p, &s);
    cr_assert(json_is_null(json_object_get(o, "remaining_ns")));
    json_decref(o);
}
