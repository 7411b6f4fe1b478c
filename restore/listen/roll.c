#include "restore/listen/roll.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#define BEGIN_LOOKS 100
#define BEGIN_LOOK_US 1000

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

bool roll_remove(struct roll *r, pid_t pid, bool killed, bool *served, int *kept)
{
    *kept = -1;
    for (unsigned i = 0; i < ROLL_MAX; i++) {
        int held = pid;
        if (atomic_load(&r->pids[i]) != pid)
            continue;
        *served = atomic_exchange(&r->served[i], false);
        bool keep = killed && *served && !atomic_load(&r->complete[i]);
        if (!atomic_compare_exchange_strong(&r->pids[i], &held, keep ? -2 : 0))
            return false;
        *kept = keep ? (int)i : -1;
        return true;
    }
    return false;
}

/* Who is about to begin says so in a moment. */
static pid_t settled(const atomic_int *place)
{
    pid_t pid = atomic_load(place);
    for (int i = 0; pid == -1 && i < BEGIN_LOOKS; i++) {
        usleep(BEGIN_LOOK_US);
        pid = atomic_load(place);
    }
    return pid;
}

unsigned roll_signal(const struct roll *r, int number)
{
    unsigned n = 0;
    for (unsigned i = 0; i < ROLL_MAX; i++) {
        pid_t pid = number ? settled(&r->pids[i]) : atomic_load(&r->pids[i]);
        n += pid > 0 || pid == -1;
        if (pid > 0 && number)
            kill(pid, number);
    }
    return n;
}

unsigned roll_list_incomplete(const struct roll *r, pid_t *vmms, unsigned max)
{
    unsigned n = 0;
    for (unsigned i = 0; i < ROLL_MAX; i++) {
        if (atomic_load(&r->pids[i]) <= 0 || !atomic_load(&r->served[i]) ||
            atomic_load(&r->complete[i]))
            continue;
        if (n < max)
            vmms[n] = atomic_load(&r->vmms[i]);
        n++;
    }
    return n;
}
