#include "common/testhook.h"

#ifdef VMSNAP_TEST_HOOKS

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool testhook_listed(const char *variable, const char *name)
{
    const char *list = getenv(variable);
    size_t len = strlen(name);
    while (list && *list) {
        const char *end = strchrnul(list, ',');
        if ((size_t)(end - list) == len && memcmp(list, name, len) == 0)
            return true;
        list = *end ? end + 1 : end;
    }
    return false;
}

bool testhook_broken(const char *rule)
{
    return testhook_listed("VMSNAP_BREAK", rule);
}

/* True when `variable` is "name" or "name:N" and this is the N-th call that asks (one counter per
 * variable suffices: a process has one aim). */
static bool aimed_at(const char *variable, const char *name, atomic_int *seen)
{
    const char *aim = getenv(variable);
    if (!aim)
        return false;
    size_t len = strlen(name);
    if (strncmp(aim, name, len) != 0 || (aim[len] != '\0' && aim[len] != ':'))
        return false;
    int wanted = aim[len] == ':' ? atoi(aim + len + 1) : 1;
    return atomic_fetch_add(seen, 1) + 1 == wanted;
}

bool testhook_fail(const char *name)
{
    static atomic_int seen;
    return aimed_at("VMSNAP_FAIL_AT", name, &seen);
}

void testhook_succeed(unsigned nth)
{
    const char *again = getenv("VMSNAP_KILL_AGAIN");
    if (!again || nth > (unsigned)atoi(again))
        unsetenv("VMSNAP_KILL_AT");
}

static void say_reached(const char *name)
{
    const char *path = getenv("VMSNAP_PAUSE_LOG");
    if (!path)
        return;
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0)
        return;
    char line[128];
    int n = snprintf(line, sizeof(line), "%s %d\n", name, (int)getpid());
    if (write(fd, line, (size_t)n) != n)
        abort();
    close(fd);
}

void testhook_point(const char *name)
{
    static atomic_int pauses, kills;
    if (aimed_at("VMSNAP_KILL_AT", name, &kills)) {
        say_reached(name);
        kill(getpid(), SIGKILL);
    }
    if (!aimed_at("VMSNAP_PAUSE_AT", name, &pauses))
        return;
    say_reached(name);
    const char *path = getenv("VMSNAP_PAUSE_LOG");
    char go[4096];
    snprintf(go, sizeof(go), "%s.go", path ? path : "/nonexistent");
    while (access(go, F_OK) != 0)
        usleep(2000);
}

#else
/* An empty translation unit is not ISO C. */
typedef int testhook_nothing;
#endif
