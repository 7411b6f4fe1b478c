#include "restore/serve/linger.h"

#include <unistd.h>

#define FRUITLESS_MAX                                                                              \
    2u /* each may have cost the guest as much as lingering saves in five faults */
#define WITHOUT_LEAST 16u
#define WITHOUT_MOST 128u
#define FAULTS_A_LOOK 64u
#define CONTENDED_NS 20000u /* that it waits for a CPU, per fault */

void linger_begin(struct linger *l)
{
    *l = (struct linger){.full_ns = sysconf(_SC_NPROCESSORS_ONLN) > 1 ? LINGER_NS : 0,
                         .next = WITHOUT_LEAST};
    run_delay_open(&l->delay);
}

void linger_end(struct linger *l)
{
    run_delay_close(&l->delay);
}

uint64_t linger_ns(const struct linger *l)
{
    return l->without > 0 || l->contended ? 0 : l->full_ns;
}

void linger_sleeps(struct linger *l)
{
    l->slept = l->without == 0;
}

/* Whether it is contended is looked at now and then. */
static void look(struct linger *l)
{
    if (++l->n < FAULTS_A_LOOK)
        return;
    l->n = 0;
    l->contended = run_delay_take(&l->delay).waited_ns > FAULTS_A_LOOK * CONTENDED_NS;
}

void linger_fault(struct linger *l)
{
    look(l);
    if (l->without > 0) {
        l->without--;
    } else if (linger_ns(l) == 0) {
        ; /* it did not try */
    } else if (!l->slept) {
        l->fruitless = 0;
        l->next = WITHOUT_LEAST;
    } else if (++l->fruitless >= FRUITLESS_MAX) {
        l->without = l->next;
        l->next = l->next < WITHOUT_MOST ? 2 * l->next : WITHOUT_MOST;
    }
    l->slept = false;
}
