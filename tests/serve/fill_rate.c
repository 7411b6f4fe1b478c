/*
 * How fast memory is filled, and what that takes: no test, a measurement (docs/performance.md).
 *
 *     fill_rate anon|memfd|hugetlb [MIB]
 *
 * With VMSNAP_MASK_FEATURES=minor-shmem shared memory is copied by UFFDIO_COPY.
 */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/clock.h"
#include "tests/kernel/ktest.h"
#include "tests/serve/serve_kit.h"

#define DEFAULT_MIB 96u

static enum kit_memory kind = KIT_MEMFD;
static uint64_t mib = DEFAULT_MIB;

static double cpu_ns(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e9 +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e3;
}

/* Of the threads that are left but this one: the server alone, once the workers are through. */
static double other_threads_ns(void)
{
    double sum = 0;
    DIR *d = opendir("/proc/self/task");
    for (const struct dirent *entry; d && (entry = readdir(d));) {
        char path[64], text[64] = "";
        int tid = atoi(entry->d_name);
        snprintf(path, sizeof(path), "/proc/self/task/%d/schedstat", tid);
        FILE *f = tid && tid != getpid() ? fopen(path, "re") : NULL;
        if (f && fgets(text, sizeof(text), f))
            sum += strtod(text, NULL);
        if (f)
            fclose(f);
    }
    if (d)
        closedir(d);
    return sum;
}

static int measure(const void *arg)
{
    (void)arg;
    struct kit_board *board = ktest_shared(sizeof(*board));
    board->n_threads = 1;
    board->n_blocks = 1;
    board->blocks[0] = (struct kit_block){.kind = kind, .n_pages = mib << 20 >> 12};
    struct kit k;
    KTEST_CHECK(kit_open(&k, board, false), "no process or image");
    double cpu = cpu_ns();
    uint64_t began_ns = clock_monotonic_ns();
    KTEST_CHECK(kit_serve(&k, false, true), "no server");
    KTEST_CHECK(kit_wait_stage(&k, SERVER_FILLED), "it was not filled");
    double wall = (double)(clock_monotonic_ns() - began_ns), bytes = (double)(mib << 20);
    usleep(20000); /* the workers end */
    printf("    %.2f GB/s; CPU time per byte: %.3f ns, the installing thread's of it %.3f ns; "
           "%llu KiB resident\n",
           bytes / wall, (cpu_ns() - cpu) / bytes, other_threads_ns() / bytes,
           (unsigned long long)ktest_status(getpid(), "VmRSS"));
    kit_close(&k);
    return KTEST_PASS;
}

int main(int argc, char **argv)
{
    if (argc > 1)
        kind = strcmp(argv[1], "anon") == 0      ? KIT_ANON
               : strcmp(argv[1], "hugetlb") == 0 ? KIT_HUGETLB
                                                 : KIT_MEMFD;
    if (argc > 2)
        mib = strtoull(argv[2], NULL, 10);
    static const struct ktest_case cases[] = {{"fill", measure, NULL}};
    return ktest_main(1, argv, cases, 1);
}
