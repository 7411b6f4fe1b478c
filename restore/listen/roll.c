#include "restore/listen/roll.h"

#include <signal.h>
#include <sys/mman.h>

struct roll *roll_new(void)
{
    void *at =
        mmap(NULL, sizeof(struct roll), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

int roll_reserve(struct roll *r)
{
    for (unsigned i = 0; i < ROLL_MAX; i++) {
        int none = 0;
        if (atomic_compare_exchange_strong(&r->pids[i], &none, -1))
            return (int)i;
    }
    return -1;
}

void roll_remove(struct roll *r, pid_t pid)
{
    for (unsigned i = 0; i < ROLL_MAX; i++) {
        int held = pid;
        if (atomic_compare_exchange_strong(&r->pids[i], &held, 0))
            return;
    }
}

unsigned roll_signal(const struct roll *r, int number)
{
    unsigned n = 0;
    for (unsigned i = 0; i < ROLL_MAX; i++) {
        pid_t pid = atomic_load(&r->pids[i]);
        n += pid != 0;
        if (pid > 0 && number)
            kill(pid, number);
    }
    return n;
}
