#include "target_kit.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/inject/inject.h"
#include "common/uffd.h"
#include "ktest.h"

struct kit_shared *kit_shared;

void kit_init(void)
{
    kit_shared = ktest_shared(sizeof(*kit_shared));
}

pid_t kit_start(int (*fn)(void *opaque), void *opaque)
{
    memset(kit_shared, 0, sizeof(*kit_shared));
    pid_t pid = ktest_spawn(fn, opaque);
    return KTEST_WAIT(atomic_load(&kit_shared->ready) || ktest_ended(pid)) ? pid : -1;
}

void kit_wait_for_stop(void)
{
    while (!atomic_load(&kit_shared->stop))
        poll(NULL, 0, 10);
}

int kit_polite(void *opaque)
{
    (void)opaque;
    atomic_store(&kit_shared->ready, 1);
    kit_wait_for_stop();
    return 0;
}

int kit_inject(pid_t pid, int timeout_ms, struct error *e)
{
    struct target t;
    int fd = -1;
    int r = target_open(&t, pid, e);
    if (r)
        return r;
    r = inject_userfaultfd(&t, &fd, NULL, timeout_ms, e);
    if (r == 0)
        r = uffd_enable(fd, 0);
    if (fd >= 0)
        close(fd);
    target_close(&t);
    return r;
}

int kit_ends_well(pid_t pid)
{
    atomic_store(&kit_shared->stop, 1);
    int status = ktest_reap(pid, 10000);
    KTEST_CHECK(status == 0, "the process ended with status 0x%x", status);
    return KTEST_PASS;
}

char kit_state(pid_t pid)
{
    char path[64], state = '?';
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    FILE *f = fopen(path, "re");
    if (f && fscanf(f, "%*d (%*[^)]) %c", &state) != 1)
        state = '?';
    if (f)
        fclose(f);
    return state;
}
