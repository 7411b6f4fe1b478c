#include <criterion/criterion.h>
#include <string.h>

#include "restore/launch/qemu/generation_id.h"

static enum generation_id of(const char *device, const char *option, const char *value)
{
    json_t *d = json_pack("{s:[{s:s}], s:{s:[s, s, s]}}", "devices", "type", device, "launch",
                          "argv", "qemu-system-x86_64", option, value);
    cr_assert_not_null(d);
    enum generation_id id = generation_id_of(d, NULL);
    json_decref(d);
    return id;
}

Test(generation_id, the_line_says_whether_it_is_new)
{
    cr_assert_eq(of("vmgenid", "-device", "vmgenid,guid=auto"), GENERATION_ID_RENEWED);
    cr_assert_eq(of("vmgenid", "-device", "vmgenid"), GENERATION_ID_RENEWED, "QEMU's default");
    cr_assert_eq(of("vmgenid", "--device", "{\"driver\": \"vmgenid\", \"guid\": \"auto\"}"),
                 GENERATION_ID_RENEWED);
    cr_assert_eq(of("vmgenid", "-device", "vmgenid,guid=324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"),
                 GENERATION_ID_FIXED);
    cr_assert_eq(of("vmgenid", "-readconfig", "vm.cfg"), GENERATION_ID_UNKNOWN);
    cr_assert_eq(of("e1000", "-device", "e1000"), GENERATION_ID_NONE);
}

Test(generation_id, a_given_line_counts_instead)
{
    char *argv[] = {"ip",      "netns",   "exec",        "x", "qemu-system-x86_64",
                    "-device", "vmgenid", "-nodefaults", NULL};
    json_t *d = json_pack("{s:[{s:s}], s:{s:[s, s, s]}}", "devices", "type", "vmgenid", "launch",
                          "argv", "qemu-system-x86_64", "-device", "vmgenid,guid=1");
    cr_assert_eq(generation_id_of(d, NULL), GENERATION_ID_FIXED);
    cr_assert_eq(generation_id_of(d, argv), GENERATION_ID_RENEWED);
    json_decref(d);
}

Test(generation_id, what_it_shows_counts_most)
{
    json_t *before = json_pack("{s:s}", "generation_id", "a");
    json_t *after = json_pack("{s:s}", "generation_id", "b"), *none = json_object();
    cr_assert_eq(generation_id_compare(before, after), GENERATION_ID_RENEWED);
    cr_assert_eq(generation_id_compare(before, before), GENERATION_ID_FIXED);
    cr_assert_eq(generation_id_compare(none, none), GENERATION_ID_NONE);
    json_decref(before);
    json_decref(after);
    json_decref(none);
}

Test(generation_id, a_description_may_hold_anything)
{
    static const char *const texts[] = {
        "{}", "{\"devices\": 3, \"launch\": []}",
        "{\"devices\": [3, {\"type\": []}, {\"type\": \"vmgenid\"}],"
        " \"launch\": {\"argv\": [[], null, \"-device\"]}}"};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        json_t *d = json_loads(texts[i], 0, NULL);
        cr_assert_not_null(d);
        enum generation_id id = generation_id_of(d, NULL);
        cr_assert(id == GENERATION_ID_NONE || id == GENERATION_ID_UNKNOWN, "%s", texts[i]);
        cr_assert(strlen(generation_id_words(id)) > 10);
        json_decref(d);
    }
}
