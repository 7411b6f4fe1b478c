/* What is recorded of how a process was started: a child stands for the VMM. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/qemu/launch_fds.h"

static pid_t child;
static struct target t;
static json_t *launch;
static struct error err;

/* Starts a shell that waits, under an argv (from the 4th word on the test's own) and environment
 * that are given, and describes it. */
static int describe(char *const *argv, char *const *envp)
{
    int fds[2];
    char byte;
    cr_assert_eq(pipe2(fds, O_CLOEXEC), 0);
    child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(open("/dev/null", O_RDONLY), 33);
        if (chdir("/usr") == 0)
            execve("/bin/sh", argv, envp);
        _exit(1);
    }
    close(fds[1]);
    cr_assert_eq(read(fds[0], &byte, 1), 0, "the program has begun");
    cr_assert_eq(target_open(&t, child, &err), 0, "%s", err.message);
    return launch_describe(&launch, &t, qemu_launch_scan, &err);
}

static void tidy(void)
{
    json_decref(launch);
    target_close(&t);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

/* stdin of the children: they wait to read from it. */
static void setup(void)
{
    int fds[2];
    cr_assert_eq(pipe(fds), 0);
    dup2(fds[0], STDIN_FILENO);
}

TestSuite(launch, .init = setup, .fini = tidy, .timeout = 20);

static const char *text_at(const char *key, size_t i)
{
    return json_string_value(json_array_get(json_object_get(launch, key), i));
}

Test(launch, line_and_place)
{
    char *argv[] = {"qemu", "-c", "read x", "", "a b\"c", NULL}, *envp[] = {NULL};
    cr_assert_eq(describe(argv, envp), 0, "%s", err.message);
    cr_assert_eq(json_array_size(json_object_get(launch, "argv")), 5);
    cr_assert_str_eq(text_at("argv", 0), "qemu");
    cr_assert_str_eq(text_at("argv", 3), "");
    cr_assert_str_eq(text_at("argv", 4), "a b\"c");
    cr_assert_str_eq(json_string_value(json_object_get(launch, "cwd")), "/usr");
    cr_assert(strstr(json_string_value(json_object_get(launch, "executable")), "sh"));
    cr_assert_eq(json_integer_value(json_object_get(launch, "uid")), geteuid());
    cr_assert_eq(json_integer_value(json_object_get(launch, "gid")), getegid());
    int n = getgroups(0, NULL);
    cr_assert_eq((int)json_array_size(json_object_get(launch, "groups")), n);
}

Test(launch, only_the_environment_that_is_needed)
{
    char *argv[] = {"qemu", "-c", "read x", NULL};
    char *envp[] = {"TZ=Europe/Vienna", "SECRET=x", "PATHS=y", "PATH=/bin:/a=b", "TMPDIR=", NULL};
    cr_assert_eq(describe(argv, envp), 0, "%s", err.message);
    const json_t *environment = json_object_get(launch, "environment");
    cr_assert_eq(json_object_size(environment), 3);
    cr_assert_str_eq(json_string_value(json_object_get(environment, "TZ")), "Europe/Vienna");
    cr_assert_str_eq(json_string_value(json_object_get(environment, "PATH")), "/bin:/a=b");
    cr_assert_str_eq(json_string_value(json_object_get(environment, "TMPDIR")), "");
}

/* "option fd target" of the i-th recorded descriptor. */
static const char *fd_text(size_t i)
{
    static char text[256];
    const json_t *f = json_array_get(json_object_get(launch, "fds"), i);
    snprintf(text, sizeof(text), "%s %d %s", json_string_value(json_object_get(f, "option")),
             (int)json_integer_value(json_object_get(f, "fd")),
             json_string_value(json_object_get(f, "target")));
    return text;
}

Test(launch, descriptors_that_the_line_names)
{
    char *argv[] = {"qemu",
                    "-c",
                    "read x",
                    "-netdev",
                    "tap,id=n,fds=33:34,vhostfds=35",
                    "-add-fd",
                    "fd=36,set=2",
                    "-append",
                    "fd=99",
                    "-drive",
                    "file=/dev/fd/37,if=none",
                    "-chardev",
                    "socket,id=a,path=x,,fd=98,fd=38",
                    "-netdev",
                    "tap,fd=byname",
                    "-fdset",
                    "xfd=97",
                    NULL};
    char *envp[] = {NULL};
    cr_assert_eq(describe(argv, envp), 0, "%s", err.message);
    cr_assert_eq(json_array_size(json_object_get(launch, "fds")), 6);
    cr_assert_str_eq(fd_text(0), "-netdev 33 /dev/null");
    cr_assert_str_eq(fd_text(1), "-netdev 34 (closed)");
    cr_assert_str_eq(fd_text(2), "-netdev 35 (closed)");
    cr_assert_str_eq(fd_text(3), "-add-fd 36 (closed)");
    cr_assert_str_eq(fd_text(4), "-drive 37 (closed)");
    cr_assert_str_eq(fd_text(5), "-chardev 38 (closed)");
}

Test(launch, a_line_that_is_no_text)
{
    char *argv[] = {"qemu", "-c", "read x", "\xff\xfe", NULL}, *envp[] = {NULL};
    cr_assert_lt(describe(argv, envp), 0);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TARGET);
}
