/*
 * --buffer is a hard cap, --bwlimit a limit, --threads a number: memory is measured over the whole
 * of a snapshot whose sink is slow and whose guest writes as fast as it can. Nothing fails, the
 * writers wait.
 */
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/engine/stepping_test.h"

#define RATE (16u << 20)
#define N_THREADS 3u
#define N_PAGES 32768u
#define SLACK_BYTES (16u << 20)

/* Shared with the worker and the sampler. */
static struct {
    atomic_uint encoders;         /* compressor threads in the worker, after the instant */
    atomic_uint_fast64_t peak;    /* of worker and writer together */
    atomic_uint_fast64_t samples; /* in which a worker was seen */
} * seen;

/* In the worker. */
static void count_encoders(struct stepping_source *s)
{
    (void)s;
    DIR *tasks = opendir("/proc/self/task");
    for (struct dirent *d; tasks && (d = readdir(tasks));) {
        char path[300], name[32] = "";
        snprintf(path, sizeof(path), "/proc/self/task/%s/comm", d->d_name);
        FILE *f = fopen(path, "re");
        if (f && fgets(name, sizeof(name), f) && strcmp(name, "vmsnap-encode\n") == 0)
            atomic_fetch_add(&seen->encoders, 1);
        if (f)
            fclose(f);
    }
    if (tasks)
        closedir(tasks);
}

/* A line of /proc/PID/status in bytes. */
static uint64_t status_bytes(int pid, const char *key)
{
    char path[64], line[128];
    uint64_t kib = 0;
    snprintf(path, sizeof(path), "/proc/%d/status", pid);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof(line), f))
        if (strncmp(line, key, strlen(key)) == 0)
            kib = strtoull(line + strlen(key), NULL, 10);
    if (f)
        fclose(f);
    return kib << 10;
}

/* Fills pids[] with the children of a process's first thread. */
static int children_of(int pid, int *pids, int room)
{
    char path[64];
    int n = 0;
    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, pid);
    FILE *f = fopen(path, "re");
    while (f && n < room && fscanf(f, "%d", &pids[n]) == 1)
        n++;
    if (f)
        fclose(f);
    return n;
}

/* Samples the worker, which is the child of `parent` that is not `other` and not this process, and
 * its writer, whose share of the write buffers is the worker's. */
static _Noreturn void sample(int parent, int other)
{
    for (;; usleep(5000)) {
        int workers[8], writers[8], n = children_of(parent, workers, 8);
        for (int i = 0; i < n; i++) {
            if (workers[i] == other || workers[i] == getpid())
                continue;
            uint64_t sum = status_bytes(workers[i], "VmRSS:");
            int m = children_of(workers[i], writers, 8);
            for (int k = 0; k < m; k++)
                sum += status_bytes(writers[k], "VmRSS:") - status_bytes(writers[k], "RssShmem:");
            atomic_fetch_add(&seen->samples, 1);
            if (sum > atomic_load(&seen->peak))
                atomic_store(&seen->peak, sum);
        }
    }
}

static int check(const struct snapshot_options *o, const json_t *summary, uint64_t ram)
{
    uint64_t limit = o->buffer_bytes + SLACK_BYTES + ram / 1000, peak = atomic_load(&seen->peak);
    double seconds = (double)stepping_number(summary, "wall_ns") / 1e9;
    double bytes = (double)stepping_number(summary, "image_bytes");
    double throttled = (double)stepping_number(summary, "throttled_ns") / 1e9;
    printf("%.1f MiB at most (%llu samples), allowed %.1f; %.1f MiB in %.2f s, writers waited "
           "%.2f s; %u compressors\n",
           (double)peak / 1048576, (unsigned long long)atomic_load(&seen->samples),
           (double)limit / 1048576, bytes / 1048576, seconds, throttled,
           atomic_load(&seen->encoders));
    return peak > limit || peak < o->buffer_bytes / 2 || atomic_load(&seen->samples) < 20 ||
           throttled <= 0 || seconds < bytes / RATE - 0.1 ||
           atomic_load(&seen->encoders) != N_THREADS;
}

int main(void)
{
    struct stepping_test t;
    int unable = stepping_test_begin(&t);
    if (unable)
        return unable;
    seen = mmap(NULL, sizeof(*seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    atomic_store(&t.board->noise, true);
    stepping_test_add(&t, STEPPING_ANON, N_PAGES);
    if (seen == MAP_FAILED || !stepping_test_start(&t))
        return 1;
    t.source.resumed = count_encoders;
    int parent = getpid();
    pid_t sampler = fork();
    if (sampler == 0)
        sample(parent, t.source.pid);
    struct snapshot_options options = stepping_options(t.image);
    options.bwlimit = RATE;
    options.n_threads = N_THREADS;
    json_t *summary;
    int failed = stepping_test_snapshot(&t, &options, &summary) != 0;
    kill(sampler, SIGKILL);
    waitpid(sampler, NULL, 0);
    if (!failed)
        failed = check(&options, summary, N_PAGES * 4096ull) || stepping_judge(t.image) != 0;
    json_decref(summary);
    stepping_test_end(&t);
    return failed;
}
