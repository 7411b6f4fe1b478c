/* The line of a VMM of somebody's own: what is started, and what keeps it from being started. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/log.h"
#include "restore/launch/vmm_kind.h"

static char dir[] = "/tmp/vmsnap-unit-XXXXXX";
static json_t *description;
static struct relaunch plan;
static struct error e;

static void setup(void)
{
    log_set_level(LOG_QUIET);
    cr_assert_not_null(mkdtemp(dir));
    description =
        json_pack("{s:i, s:s, s:s, s:[s], s:{s:[s, s, s, s, s], s:s, s:s, s:i, s:i, s:[], "
                  "s:{}, s:[{s:s, s:i}]}}",
                  "vmsnap_vmm", 1, "vmm", "x", "status", "running", "listens", "api.sock", "launch",
                  "argv", "vmm", "--api=api.sock", "--vmsnap-incoming", "/run/x", "--cpus=2",
                  "executable", "/usr/bin/vmm", "cwd", dir, "uid", 0, "gid", 0, "groups",
                  "environment", "fds", "option", "--disk", "fd", 7);
    cr_assert_not_null(description);
}

static void teardown(void)
{
    char command[128];
    relaunch_free(&plan);
    json_decref(description);
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    cr_assert_eq(system(command), 0);
}

TestSuite(launch_control, .init = setup, .fini = teardown, .timeout = 20);

static const struct vmm_kind *kind(void)
{
    const struct vmm_kind *k = vmm_kind_of(description);
    cr_assert_eq(k, &vmm_kind_control);
    return k;
}

static const char *planned(char *const *given)
{
    static char text[512];
    relaunch_free(&plan);
    cr_assert_eq(kind()->plan(&plan, description, given, &e), 0, "%s", e.message);
    char *quoted = relaunch_quote(&plan);
    snprintf(text, sizeof(text), "%s", quoted);
    free(quoted);
    return text;
}

Test(launch_control, recorded_and_given_lines)
{
    cr_assert_str_eq(planned(NULL), "/usr/bin/vmm --api=api.sock --cpus=2");
    cr_assert(plan.recorded && plan.resumes && plan.as_user);
    char *given[] = {"ip", "netns", "exec", "n", "vmm", "--vmsnap-incoming=/run/y", "-x", NULL};
    cr_assert_str_eq(planned(given), "ip netns exec n vmm -x");
    cr_assert(!plan.recorded && !plan.as_user);
    char *cut[] = {"vmm", "--vmsnap-incoming", NULL};
    cr_assert_str_eq(planned(cut), "vmm");
    cr_assert_eq(kind()->add_private(&plan, "/run/vmsnap-restore-x/qmp", &e), 0);
    cr_assert_str_eq(plan.argv[1], "--vmsnap-incoming");
    cr_assert_str_eq(plan.argv[2], "/run/vmsnap-restore-x/qmp");
    cr_assert_null(plan.argv[3]);
}

Test(launch_control, records_that_make_no_sense)
{
    static const char *const keys[] = {"argv", "executable", "cwd", "uid", "groups"};
    for (size_t i = 0; i < sizeof(keys) / sizeof(*keys); i++) {
        json_t *bad = json_deep_copy(description);
        json_object_set_new(json_object_get(bad, "launch"), keys[i], json_true());
        cr_assert_lt(vmm_kind_control.plan(&plan, bad, NULL, &e), 0, "%s", keys[i]);
        cr_assert_eq(e.exit_code, VMSNAP_EXIT_IMAGE, "%s", keys[i]);
        relaunch_free(&plan);
        json_decref(bad);
    }
}

static bool all_there(int fd)
{
    (void)fd;
    return true;
}

static bool none_there(int fd)
{
    (void)fd;
    return false;
}

/* Somebody listens on api.sock in the directory. */
static int hold_socket(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(a.sun_path, sizeof(a.sun_path), "%s/api.sock", dir);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    cr_assert_eq(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    cr_assert_eq(listen(fd, 1), 0);
    return fd;
}

static const char *refusal(bool (*inherited)(int fd))
{
    e = (struct error){0};
    if (kind()->refuse(&plan, description, NULL, inherited, &e) == 0)
        return "";
    cr_assert_eq(e.exit_code, VMSNAP_EXIT_HAZARD);
    cr_assert_neq(e.hint[0], '\0');
    e.message[strcspn(e.message, ":")] = '\0';
    return e.message;
}

Test(launch_control, refusals)
{
    planned(NULL);
    cr_assert_str_eq(refusal(all_there), "");
    cr_assert_str_eq(refusal(none_there), "inherited-fd");
    int fd = hold_socket();
    cr_assert_str_eq(refusal(all_there), "in-use");
    char *other[] = {"vmm", "--api=other.sock", "my-api.sock", "api.sock2", NULL};
    planned(other);
    plan.cwd = strdup(dir);
    cr_assert_str_eq(refusal(none_there), "", "another socket, and descriptors of one's own");
    char *same[] = {"vmm", "--listen", "unix:api.sock,mode=600", NULL};
    planned(same);
    plan.cwd = strdup(dir);
    cr_assert_str_eq(refusal(none_there), "in-use");
    close(fd);
    cr_assert_str_eq(refusal(none_there), "", "a socket that nobody holds any more");
}

Test(launch_control, garbage_in_the_description)
{
    planned(NULL);
    json_object_set_new(description, "listens", json_pack("[i, n, s, {}]", 3, ""));
    json_object_set_new(json_object_get(description, "launch"), "fds",
                        json_pack("[i, {s:s}, {s:i}]", 3, "fd", "x", "fd", -7));
    cr_assert_str_eq(refusal(none_there), "");
}
