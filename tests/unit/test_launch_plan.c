/* What is started: the recorded or given line, less what can't be replayed, plus what is needed. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "restore/launch/qemu/plan.h"

static json_t *description;
static struct relaunch plan;
static struct error e;

/* A description with this recorded line. */
static void describe(char *const *argv)
{
    json_t *words = json_array();
    for (; *argv; argv++)
        json_array_append_new(words, json_string(*argv));
    description = json_pack("{s:s, s:s, s:{s:o, s:s, s:s, s:i, s:i, s:[i, i], s:{s:s}}}", "machine",
                            "pc-i440fx-7.2", "status", "running", "launch", "argv", words,
                            "executable", "/usr/bin/qemu", "cwd", "/srv", "uid", 64055, "gid", 108,
                            "groups", 108, 36, "environment", "HOME", "/root");
    cr_assert_not_null(description);
}

static void setup(void)
{
    log_set_level(LOG_QUIET);
}

static void teardown(void)
{
    relaunch_free(&plan);
    json_decref(description);
}

TestSuite(plan, .init = setup, .fini = teardown);

static void assert_line(const char *expected)
{
    char *text = relaunch_quote(&plan);
    cr_assert_str_eq(text, expected, "the line is: %s", text);
    free(text);
}

Test(plan, the_recorded_line_as_the_recorded_user)
{
    describe((char *[]){"qemu", "-machine", "pc,usb=off", "-m", "1G", NULL});
    cr_assert_eq(qemu_plan(&plan, description, NULL, &e), 0, "%s", e.message);
    cr_assert(plan.recorded && plan.resumes && plan.as_user);
    assert_line("/usr/bin/qemu -machine pc,usb=off -m 1G -machine pc-i440fx-7.2");
    cr_assert_str_eq(plan.executable, "/usr/bin/qemu");
    cr_assert_str_eq(plan.cwd, "/srv");
    cr_assert_eq(plan.uid, 64055);
    cr_assert_eq(plan.gid, 108);
    cr_assert_eq(plan.n_groups, 2);
    cr_assert_eq(plan.groups[1], 36);
    cr_assert_str_eq(plan.environment[0], "HOME=/root");
    cr_assert_eq(strncmp(plan.environment[1], "PATH=", 5), 0);
    cr_assert_null(plan.environment[2]);
}

Test(plan, what_cannot_be_replayed_is_dropped)
{
    describe((char *[]){"qemu",
                        "-daemonize",
                        "-loadvm",
                        "x",
                        "-S",
                        "-runas",
                        "vm",
                        "-incoming",
                        "tcp:0:1",
                        "-append",
                        "-S",
                        "-qmp",
                        "unix:/run/vmsnap-restore-a1/qmp",
                        "-qmp",
                        "unix:/q,server",
                        "-machine",
                        "pc-i440fx-7.2",
                        "-machine",
                        "pc-i440fx-7.2,usb=off",
                        NULL});
    cr_assert_eq(qemu_plan(&plan, description, NULL, &e), 0, "%s", e.message);
    assert_line("/usr/bin/qemu -append -S -qmp unix:/q,server -machine pc-i440fx-7.2,usb=off "
                "-machine pc-i440fx-7.2");
}

Test(plan, the_given_line_keeps_its_wrapper_and_our_own_user)
{
    describe((char *[]){"qemu", NULL});
    char *given[] = {"ip", "netns", "exec", "blue", "qemu-system-x86_64", "-S", "-m", "1G", NULL};
    cr_assert_eq(qemu_plan(&plan, description, given, &e), 0, "%s", e.message);
    cr_assert_not(plan.recorded);
    cr_assert_not(plan.as_user);
    cr_assert_null(plan.cwd);
    cr_assert_null(plan.environment);
    assert_line("ip netns exec blue qemu-system-x86_64 -m 1G -machine pc-i440fx-7.2");
}

Test(plan, additions_go_to_the_end)
{
    describe((char *[]){"qemu", NULL});
    cr_assert_eq(qemu_plan(&plan, description, NULL, &e), 0);
    cr_assert_eq(qemu_add_private(&plan, "/run/vmsnap-restore-x/qmp", &e), 0);
    assert_line("/usr/bin/qemu -machine pc-i440fx-7.2 -S -incoming defer -qmp "
                "unix:/run/vmsnap-restore-x/qmp");
    /* and an image of the restored VM drops them again */
    json_t *again = json_copy(description);
    json_t *launch = json_copy(json_object_get(description, "launch"));
    json_t *words = json_array();
    for (size_t i = 0; i < plan.argc; i++)
        json_array_append_new(words, json_string(plan.argv[i]));
    json_object_set_new(launch, "argv", words);
    json_object_set_new(again, "launch", launch);
    relaunch_free(&plan);
    cr_assert_eq(qemu_plan(&plan, again, NULL, &e), 0);
    assert_line("/usr/bin/qemu -machine pc-i440fx-7.2");
    json_decref(again);
}

Test(plan, aliases_fit_and_other_machines_do_not)
{
    static const struct {
        const char *given;
        bool fits;
    } machines[] = {
        {"pc", true},          {"pc,usb=off", true},
        {"type=pc", true},     {"accel=tcg", true},
        {"q35", false},        {"pc-i440fx-7.1", false},
        {"none", false},       {"pc-i440fx-7.2", true},
        {"pc-q35-7.2", false}, {"pc-i440fx-7.2.1", false},
    };
    describe((char *[]){"qemu", NULL});
    for (size_t i = 0; i < sizeof(machines) / sizeof(machines[0]); i++) {
        char *given[] = {"qemu", "-M", (char *)machines[i].given, NULL};
        int rc = qemu_plan(&plan, description, given, &e);
        cr_assert_eq(rc == 0, machines[i].fits, "-M %s", machines[i].given);
        cr_assert(rc == 0 || e.exit_code == VMSNAP_EXIT_MISMATCH);
        relaunch_free(&plan);
    }
}

Test(plan, a_paused_guest_stays_paused)
{
    describe((char *[]){"qemu", NULL});
    json_object_set_new(description, "status", json_string("paused"));
    cr_assert_eq(qemu_plan(&plan, description, NULL, &e), 0);
    cr_assert_not(plan.resumes);
}

/* What --print-command shows runs as it would without being given. */
Test(plan, the_line_takes_user_and_directory_along)
{
    describe((char *[]){"qemu", "-m", "1G", NULL});
    cr_assert_eq(qemu_plan(&plan, description, NULL, &e), 0);
    char *text = relaunch_quote_start(&plan);
    cr_assert_str_eq(text,
                     "setpriv --reuid=64055 --regid=108 --groups=108,36 env -C /srv /usr/bin/qemu "
                     "-m 1G -machine pc-i440fx-7.2",
                     "the line is: %s", text);
    free(text);
}

Test(plan, words_are_quoted_for_a_shell)
{
    describe((char *[]){"qemu", "-append", "a b", "-name", "it's", "-x", "", "-drive",
                        "file=a,if=virtio", "-y", "$(rm)", NULL});
    cr_assert_eq(qemu_plan(&plan, description, NULL, &e), 0);
    assert_line("/usr/bin/qemu -append 'a b' -name 'it'\\''s' -x '' -drive file=a,if=virtio -y "
                "'$(rm)' -machine pc-i440fx-7.2");
}

Test(plan, what_a_terminal_would_obey_is_shown)
{
    describe((char *[]){"qemu", "-name",
                        "it's\x1b[2K\\\r\xc2\x9b"
                        "0m\xc3\xa4",
                        NULL});
    cr_assert_eq(qemu_plan(&plan, description, NULL, &e), 0);
    assert_line("/usr/bin/qemu -name $'it\\'s\\x1b[2K\\\\\\x0d\\xc2\\x9b0m\xc3\xa4' -machine "
                "pc-i440fx-7.2");
}

/* Sets one key of the recorded launch to something else; it must be refused, not crash. */
static void assert_bad(const char *key, json_t *value)
{
    json_t *bad = json_deep_copy(description);
    json_object_set_new(json_object_get(bad, "launch"), key, value);
    cr_assert_eq(qemu_plan(&plan, bad, NULL, &e), -EBADMSG, "%s", key);
    cr_assert_eq(e.exit_code, VMSNAP_EXIT_IMAGE);
    json_decref(bad);
}

Test(plan, a_hostile_record_is_refused)
{
    describe((char *[]){"qemu", NULL});
    assert_bad("argv", json_array());
    assert_bad("argv", json_pack("[i]", 1));
    assert_bad("argv", json_string("qemu"));
    assert_bad("argv", json_null());
    assert_bad("executable", json_string("qemu"));
    assert_bad("executable", json_null());
    assert_bad("cwd", json_string("relative"));
    assert_bad("uid", json_integer(-1));
    assert_bad("uid", json_integer(4294967296));
    assert_bad("uid", json_string("0"));
    assert_bad("gid", json_null());
    assert_bad("groups", json_pack("[i, s]", 1, "x"));
    assert_bad("groups", json_object());
    assert_bad("environment", json_pack("{s:i}", "A", 1));
    assert_bad("environment", json_pack("{s:s}", "A=B", "c"));
    json_object_del(description, "launch");
    cr_assert_eq(qemu_plan(&plan, description, NULL, &e), -EBADMSG);
    json_object_del(description, "machine");
    cr_assert_eq(qemu_plan(&plan, description, (char *[]){"qemu", NULL}, &e), -EBADMSG);
}
