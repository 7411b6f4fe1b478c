#include "restore/serve/linger.h"

#include <unistd.h>

#define FRUITLESS_MAX                                                                              \
    2u /* each may have cost the guest as much as lingering saves in five faults */
#define WITHOUT_LEAST 16u
#define WITHOUT_MOST 128u

void linger_init(struct linger *l)
{
    *l = (struct linger){.full_ns = sysconf(_SC_NPROCESSORS_ONLN) > 1 ? LINGER_NS : 0,
                         .next = WITHOUT_LEAST};
}

uint64_t linger_ns(const struct linger *l)
{
    return l->without > 0 ? 0 : l->full_ns;
}

void linger_sleeps(struct linger *l)
{
    l->slept = l->without == 0;
}

void linger_fault(struct linger *l)
{
    if (l->without > 0) {
        l->without--;
    } else if (!l->slept) {
        l->fruitless = 0;
        l->next = WITHOUT_LEAST;
    } else if (++l->fruitless >= FRUITLESS_MAX) {
        l->without = l->next;
        l->next = l->next < WITHOUT_MOST ? 2 * l->next : WITHOUT_MOST;
    }
    l->slept = false;
}
