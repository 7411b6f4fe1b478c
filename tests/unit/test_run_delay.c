/* What a thread learns of it that it shares its CPU with one that never sleeps. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/resource.h>

#include "common/clock.h"
#include "common/run_delay.h"
#include "restore/decode/rest.h"
#include "restore/serve/linger.h"
#include "tests/unit/plain_check.h"

#define PATIENCE_NS 10000000000ull

static atomic_bool enough;

static void *take_the_cpu(void *opaque)
{
    while (!atomic_load_explicit(&enough, memory_order_relaxed))
        ;
    return opaque;
}

/* All threads of this process, those to come included. */
static bool go_to_one_cpu(void)
{
    cpu_set_t one, allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed))
        return false;
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; cpu++)
        if (CPU_ISSET(cpu, &allowed))
            CPU_SET(cpu, &one);
    return sched_setaffinity(0, sizeof(one), &one) == 0;
}

static void work_for_ns(uint64_t ns)
{
    for (uint64_t until = clock_monotonic_ns() + ns; clock_monotonic_ns() < until;)
        ;
}

static void check_times(void)
{
    struct run_delay d;
    run_delay_open(&d);
    work_for_ns(100000000);
    struct cpu_times since = run_delay_take(&d);
    CHECK(since.ran_ns > 1000000);
    CHECK(since.waited_ns > 10000000);
    run_delay_close(&d);
}

static void check_that_linger_ends(void)
{
    struct linger l;
    linger_begin(&l);
    l.full_ns = LINGER_NS; /* wherever this runs */
    CHECK(linger_ns(&l) == LINGER_NS);
    uint64_t until = clock_monotonic_ns() + PATIENCE_NS;
    while (linger_ns(&l) > 0 && clock_monotonic_ns() < until)
        linger_fault(&l);
    CHECK(linger_ns(&l) == 0);
    linger_end(&l);
}

/* This thread hardly gets the CPU from here on. */
static void check_that_worker_rests(void)
{
    struct rest r;
    unsigned ms = 0;
    CHECK(setpriority(PRIO_PROCESS, 0, 19) == 0);
    rest_begin(&r);
    uint64_t until = clock_monotonic_ns() + PATIENCE_NS;
    while (ms == 0 && clock_monotonic_ns() < until) {
        work_for_ns(40000);
        ms = rest_due_ms(&r);
    }
    CHECK(ms > 0);
    rest_end(&r);
}

/* As if the kernel did not tell. */
static void check_that_nothing_comes_of_nothing(void)
{
    struct rest r;
    rest_begin(&r);
    rest_end(&r);
    for (unsigned i = 0; i < 10000; i++)
        CHECK(rest_due_ms(&r) == 0);
}

int main(void)
{
    pthread_t other;
    CHECK(go_to_one_cpu());
    if (pthread_create(&other, NULL, take_the_cpu, NULL))
        return 1;
    check_times();
    check_that_linger_ends();
    check_that_nothing_comes_of_nothing();
    check_that_worker_rests();
    atomic_store(&enough, true);
    pthread_join(other, NULL);
    return check_result();
}
