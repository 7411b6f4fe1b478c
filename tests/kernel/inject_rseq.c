/*
 * Injection into a process whose threads count in restartable sequences (rseq(2), registered by
 * glibc since 2.35): no count is lost, so no sequence has been resumed that should have been
 * aborted.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/rseq.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/inject/inject.h"
#include "ktest.h"

#define THREADS 3
#define MAX_CPUS 1024
#define RUN_NS 3000000000ull
#define TIMEOUT_MS 10000

struct shared {
    atomic_int ready, stop;
    atomic_ulong done;
    struct {
        unsigned long count;
        char padding[56];
    } cpu[MAX_CPUS];
};

static struct shared *shared;

static struct rseq *own_rseq(void)
{
    return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

/*
 * counter of this CPU += 1, as a load, an addition and a store: correct only if the sequence is
 * aborted whenever the thread is preempted or migrated in it. The loop in it makes that likely.
 * False: aborted, try again.
 */
static bool count_once(uint32_t cpu)
{
    struct rseq *r = own_rseq();
    unsigned long *counter = &shared->cpu[cpu].count;
    __asm__ goto(
        ".pushsection __rseq_cs, \"aw\"\n"
        ".balign 32\n"
        "3: .long 0, 0\n"
        "   .quad 1f, 2f - 1f, 4f\n"
        ".popsection\n"
        "   leaq 3b(%%rip), %%rax\n"
        "   movq %%rax, %c[cs](%[rseq])\n"
        "1: cmpl %[cpu], %c[cpu_id](%[rseq])\n"
        "   jnz 4f\n"
        "   movq (%[counter]), %%rax\n"
        "   movl $50, %%ecx\n"
        "5: pause\n"
        "   decl %%ecx\n"
        "   jnz 5b\n"
        "   incq %%rax\n"
        "   movq %%rax, (%[counter])\n"
        "2: jmp 6f\n"
        "   .byte 0x0f, 0xb9, 0x3d\n" /* the signature, as an undefined instruction */
        "   .long 0x53053053\n"
        "4: jmp %l[aborted]\n"
        "6:\n"
        :
        : [rseq] "r"(r), [cpu] "r"(cpu), [counter] "r"(counter),
          [cs] "i"(offsetof(struct rseq, rseq_cs)), [cpu_id] "i"(offsetof(struct rseq, cpu_id))
        : "rax", "rcx", "memory", "cc"
        : aborted);
    return true;
aborted:
    return false;
}

/* Counts, with a system call now and then: that is where the thread can be stopped. */
static void *count(void *opaque)
{
    for (unsigned i = 0; !atomic_load(&shared->stop); i++) {
        uint32_t cpu = __atomic_load_n(&own_rseq()->cpu_id_start, __ATOMIC_RELAXED);
        if (count_once(cpu % MAX_CPUS))
            atomic_fetch_add(&shared->done, 1);
        if (i % 64 == 0) {
            struct timespec nap = {.tv_nsec = 50000};
            nanosleep(&nap, NULL);
        }
    }
    return opaque;
}

static int counting(void *opaque)
{
    (void)opaque;
    pthread_t thread[THREADS];
    atomic_store(&shared->ready, 1);
    for (int i = 0; i < THREADS; i++)
        pthread_create(&thread[i], NULL, count, NULL);
    count(NULL);
    for (int i = 0; i < THREADS; i++)
        pthread_join(thread[i], NULL);
    return 0;
}

static int restartable_sequences(const void *arg)
{
    (void)arg;
    struct error e = {0};
    struct target t;
    unsigned injections = 0;
    unsigned long sum = 0;
    KTEST_SKIP_IF(__rseq_size == 0, "the kernel has no rseq, or glibc does not use it");
    pid_t pid = ktest_spawn(counting, NULL);
    KTEST_CHECK(KTEST_WAIT(atomic_load(&shared->ready)), "does not start");
    KTEST_CHECK(target_open(&t, pid, &e) == 0, "%s", e.message);
    uint64_t end_ns = clock_monotonic_ns() + RUN_NS;
    while (clock_monotonic_ns() < end_ns) {
        int fd;
        KTEST_CHECK(inject_userfaultfd(&t, &fd, NULL, TIMEOUT_MS, &e) == 0, "%s", e.message);
        close(fd);
        injections++;
    }
    target_close(&t);
    atomic_store(&shared->stop, 1);
    int status = ktest_reap(pid, 10000);
    KTEST_CHECK(status == 0, "status 0x%x", status);
    for (unsigned i = 0; i < MAX_CPUS; i++)
        sum += shared->cpu[i].count;
    printf("    %u injections, %lu counts\n", injections, sum);
    KTEST_CHECK(sum == atomic_load(&shared->done) && sum > 1000, "%lu counted, %lu done", sum,
                atomic_load(&shared->done));
    return KTEST_PASS;
}

int main(int argc, char **argv)
{
    const struct ktest_case cases[] = {
        {"restartable sequences", restartable_sequences, NULL},
    };
    shared = ktest_shared(sizeof(*shared));
    return ktest_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
