/*
 * Who waits for a page when its memory is unregistered must go on: also one who begins to wait at
 * that very moment, which UFFDIO_UNREGISTER by itself does not see to (common/uffd.c). Threads
 * begin to touch absent pages just as these are unregistered, thousands of times.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/uffd.h"
#include "tests/kernel/ktest.h"

#define THREADS 2
#define PAGES_EACH 32u
#define PAGE_BYTES 4096u
#define RUN_NS 5000000000u
#define HANG_NS 3000000000u     /* a busy machine needs tens of milliseconds */
#define STARVED_NS 15000000000u /* one that starves us, whatever it takes */

struct play {
    unsigned char *memory;
    atomic_uint round; /* begins when it is counted up */
    atomic_uint through;
};

struct toucher {
    pthread_t thread;
    struct play *play;
    unsigned char *pages;
};

/* Never ends: the process does. */
static void *touch(void *opaque)
{
    const struct toucher *t = opaque;
    for (unsigned round = 0;; round++) {
        while (atomic_load(&t->play->round) == round)
            ;
        for (unsigned i = 0; i < PAGES_EACH; i++)
            *(volatile unsigned char *)(t->pages + i * PAGE_BYTES);
        atomic_fetch_add(&t->play->through, 1);
    }
    return NULL;
}

/* Whether a thread of ours sleeps in a fault. One that has been woken and gets no CPU does not. */
static bool waits_for_page(void)
{
    bool waits = false;
    DIR *tasks = opendir("/proc/self/task");
    for (const struct dirent *d; tasks && !waits && (d = readdir(tasks));) {
        char path[300], channel[64] = "";
        snprintf(path, sizeof(path), "/proc/self/task/%s/wchan", d->d_name);
        FILE *f = fopen(path, "re");
        waits = f && fgets(channel, sizeof(channel), f) && !strcmp(channel, "handle_userfault");
        if (f)
            fclose(f);
    }
    if (tasks)
        closedir(tasks);
    return waits;
}

static bool all_get_through(struct play *p)
{
    uint64_t began = clock_monotonic_ns();
    for (unsigned i = 0; atomic_load(&p->through) < THREADS; i++) {
        uint64_t waited = clock_monotonic_ns() - began;
        if (waited > STARVED_NS || (waited > HANG_NS && waits_for_page()))
            return false;
        if (i > 1000)
            usleep(20);
    }
    return true;
}

static int play(int fd, struct play *p, uint64_t len, unsigned *rounds)
{
    uint64_t start = (uint64_t)(uintptr_t)p->memory, until = clock_monotonic_ns() + RUN_NS;
    for (*rounds = 0; clock_monotonic_ns() < until; ++*rounds) {
        madvise(p->memory, len, MADV_REMOVE); /* of shared memory */
        madvise(p->memory, len, MADV_DONTNEED);
        KTEST_CHECK(uffd_register(fd, start, len, UFFDIO_REGISTER_MODE_MISSING, NULL) == 0,
                    "register: %m");
        atomic_store(&p->through, 0);
        atomic_fetch_add(&p->round, 1);
        for (volatile int delay = rand() % 6000; delay > 0; delay--)
            ;
        KTEST_CHECK(uffd_unregister_pieces(fd, start, len) == 0, "unregister");
        KTEST_CHECK(all_get_through(p), "round %u: a thread waits for a page that nobody serves",
                    *rounds);
    }
    return KTEST_PASS;
}

/* In a process of its own: its threads may hang. */
static int run_child(void *opaque)
{
    int flags = *(const int *)opaque;
    uint64_t len = (uint64_t)THREADS * PAGES_EACH * PAGE_BYTES;
    struct play p = {.memory = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, -1, 0)};
    struct toucher touchers[THREADS];
    unsigned rounds = 0;
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    KTEST_CHECK(p.memory != MAP_FAILED && fd >= 0, "%m");
    KTEST_CHECK(uffd_enable(fd, UFFD_FEATURE_MISSING_SHMEM) == 0, "enable: %m");
    madvise(p.memory, len, MADV_NOHUGEPAGE);
    for (unsigned i = 0; i < THREADS; i++) {
        touchers[i] =
            (struct toucher){.play = &p, .pages = p.memory + (uint64_t)i * PAGES_EACH * PAGE_BYTES};
        KTEST_CHECK(pthread_create(&touchers[i].thread, NULL, touch, &touchers[i]) == 0, "thread");
    }
    int r = play(fd, &p, len, &rounds);
    printf("    %u rounds\n", rounds);
    fflush(stdout);
    return r;
}

static int wakes_everyone(const void *arg)
{
    int flags = *(const int *)arg;
    pid_t pid = ktest_spawn(run_child, &flags);
    int status = ktest_reap(pid, 30000);
    KTEST_CHECK(status == 0, "status %#x", (unsigned)status);
    return KTEST_PASS;
}

static const int private_memory = MAP_PRIVATE | MAP_ANONYMOUS;
static const int shared_memory = MAP_SHARED | MAP_ANONYMOUS;

int main(int argc, char **argv)
{
    static const struct ktest_case cases[] = {
        {"wakes-everyone-private", wakes_everyone, &private_memory},
        {"wakes-everyone-shared", wakes_everyone, &shared_memory},
    };
    return ktest_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
