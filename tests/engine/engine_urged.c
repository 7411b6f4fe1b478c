/*
 * The worker's session gives way to the guest; when a write of the guest is held for a while the
 * watch takes that back, and each time anew: whoever gives way again meanwhile (the pause may come
 * after the first time) is not left so. Where the kernel has autogroups (autogroup in sched(7)).
 */
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/thread.h"
#include "tests/engine/stepping_test.h"

#define RATE (3u << 20) /* so slow that writes are held all the time */
#define N_PAGES 8192u
#define TIMES 3u
#define GIVEN_WAY 7
#define WAIT_MS 2000

/* Shared with the worker. */
static struct {
    atomic_uint given, taken_back;
} * seen;

/* The nice value of the session that this process is in; -100: there is none. */
static int session_nice(void)
{
    int value = -100;
    FILE *f = fopen("/proc/self/autogroup", "re");
    if (f && fscanf(f, "/autogroup-%*d nice %d", &value) != 1)
        value = -100;
    if (f)
        fclose(f);
    return value;
}

/* In the worker: gives way, and sees that taken back, several times. */
static void *give_way(void *opaque)
{
    (void)opaque;
    for (unsigned i = 0; i < TIMES; i++) {
        if (thread_session_nice(GIVEN_WAY))
            return NULL;
        atomic_fetch_add(&seen->given, 1);
        for (int ms = 0; session_nice() != 0; ms += 5) {
            if (ms >= WAIT_MS)
                return NULL;
            usleep(5000);
        }
        atomic_fetch_add(&seen->taken_back, 1);
    }
    return NULL;
}

static void on_resumed(struct stepping_source *s)
{
    (void)s;
    pthread_t thread;
    pthread_create(&thread, NULL, give_way, NULL);
}

int main(void)
{
    struct stepping_test t;
    int unable = stepping_test_begin(&t);
    if (unable)
        return unable;
    if (session_nice() == -100) {
        printf("skipped: this kernel has no autogroups\n");
        return 77;
    }
    seen = mmap(NULL, sizeof(*seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    atomic_store(&t.board->noise, true);
    stepping_test_add(&t, STEPPING_ANON, N_PAGES);
    if (seen == MAP_FAILED || !stepping_test_start(&t))
        return 1;
    t.source.resumed = on_resumed;
    struct snapshot_options options = stepping_options(t.image);
    options.bwlimit = RATE;
    json_t *summary;
    int failed = stepping_test_snapshot(&t, &options, &summary) != 0;
    unsigned given = atomic_load(&seen->given), taken_back = atomic_load(&seen->taken_back);
    printf("gave way %u times, taken back %u times; writers waited %lld ms, the longest %lld ms\n",
           given, taken_back, (long long)stepping_number(summary, "throttled_ns") / 1000000,
           (long long)stepping_number(summary, "longest_gap_ns") / 1000000);
    failed |= given != TIMES || taken_back != TIMES || stepping_judge(t.image) != 0;
    json_decref(summary);
    stepping_test_end(&t);
    return failed;
}
