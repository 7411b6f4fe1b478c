/*
 * Theory of operation
 *
 * What a write fault costs when nothing is saved: the least that any snapshot by write protection
 * can cost the guest. Memory is attached to, registered and protected by the code that vmsnap
 * itself uses; faults are read in the same batches, by a thread of the same priority that keeps
 * reading as long after a fault; the same unit is unprotected, and then the rest of the block that
 * vmsnap would have saved round it. There is no copy, no sweep, no compressor.
 *
 * With busy threads beside it, as nice as vmsnap's compressors and doing nothing of use, it is the
 * floor of a machine whose CPUs are all in use: the guest's thread, woken, has to get one first.
 *
 * The caller stops the VM, writes "protect" to our stdin, lets it run when we have answered, and
 * closes stdin when it has seen enough.
 */
#include "tools/bench/floor.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/image/format.h"
#include "common/inject/inject.h"
#include "common/thread.h"
#include "common/uffd.h"
#include "snapshot/memory/arm.h"

#define BATCH_MESSAGES 32
#define BUSY_READ_NS 100000u /* as long as vmsnap reads on while faults keep coming */
#define AROUND_BYTES (64ull << 10)
#define COMMAND_BYTES 64
#define BUSY_NICE 5 /* as vmsnap's compressors */

struct floor {
    struct target target;
    struct region region;
    int uffd;
    bool ended; /* stdin was closed */
    uint64_t faults, holes, failures;
    pthread_t busy[FLOOR_MAX_BUSY];
    unsigned n_busy;
    atomic_bool busy_end;
};

static void *be_busy(void *opaque)
{
    struct floor *f = opaque;
    setpriority(PRIO_PROCESS, 0, BUSY_NICE); /* of this thread */
    while (!atomic_load_explicit(&f->busy_end, memory_order_relaxed))
        continue;
    return NULL;
}

static int start_busy(struct floor *f, unsigned n, struct error *e)
{
    for (; f->n_busy < n; f->n_busy++) {
        int ret = thread_start(&f->busy[f->n_busy], be_busy, f);
        if (ret)
            return error_set(e, VMSNAP_EXIT_FAILED, -ret, "cannot start a thread");
    }
    return 0;
}

static void end_busy(struct floor *f)
{
    atomic_store(&f->busy_end, true);
    while (f->n_busy > 0)
        pthread_join(f->busy[--f->n_busy], NULL);
}

static int attach(struct floor *f, uint64_t start, uint64_t bytes, struct error *e)
{
    struct mapping_list maps = {0};
    int ret = target_mappings(&f->target, &maps, e);
    if (ret)
        return ret;
    f->region = (struct region){.hva = start, .bytes = bytes, .max_bytes = bytes, .fd = -1};
    snprintf(f->region.name, sizeof(f->region.name), "memory");
    ret = region_classify(&f->region, &f->target, &maps, e);
    mapping_list_free(&maps);
    if (!ret)
        ret = inject_userfaultfd(&f->target, &f->uffd, NULL, 5000, e);
    if (!ret)
        ret = arm_enable(f->uffd, e);
    return ret ? ret : arm_register(f->uffd, &f->region, e);
}

/* Zero pages where none is, up to the first page that is there. */
static void fill_hole(struct floor *f, uint64_t hva)
{
    f->holes++;
    int ret = uffd_zeropage(f->uffd, hva, IMAGE_PAGE_BYTES, true, NULL);
    if (ret == -EEXIST)
        ret = uffd_wake(f->uffd, hva, IMAGE_PAGE_BYTES);
    f->failures += ret != 0;
}

/* Unprotects the aligned `bytes` round hva, as far as they lie in the region. */
static void unprotect(struct floor *f, uint64_t hva, uint64_t bytes)
{
    uint64_t offset = (hva - f->region.hva) / bytes * bytes, left = f->region.bytes - offset;
    f->failures +=
        uffd_unprotect(f->uffd, f->region.hva + offset, bytes < left ? bytes : left) != 0;
}

static void serve(struct floor *f, const struct uffd_msg *messages, int n)
{
    uint64_t unit =
        f->region.page_bytes > IMAGE_CLUSTER_BYTES ? f->region.page_bytes : IMAGE_CLUSTER_BYTES;
    uint64_t last = 0;
    for (int i = 0; i < n; i++) {
        if (messages[i].event != UFFD_EVENT_PAGEFAULT)
            continue;
        uint64_t hva = messages[i].arg.pagefault.address & ~(uint64_t)(IMAGE_PAGE_BYTES - 1);
        if (messages[i].arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
            unprotect(f, last = hva, unit);
            f->faults++;
        } else {
            fill_hole(f, hva);
        }
    }
    if (last && unit < AROUND_BYTES)
        unprotect(f, last, AROUND_BYTES);
}

/* "protect", or the end. False: nothing that we know. */
static bool obey(struct floor *f, struct error *e)
{
    char command[COMMAND_BYTES];
    ssize_t n = read(STDIN_FILENO, command, sizeof(command));
    if (n <= 0) {
        f->ended = true;
        return true;
    }
    if (n != 8 || memcmp(command, "protect\n", 8) != 0) {
        error_set(e, VMSNAP_EXIT_USAGE, EINVAL, "what came on stdin is not \"protect\"");
        return false;
    }
    uint64_t from = clock_monotonic_ns();
    int ret = uffd_protect(f->uffd, f->region.hva, region_whole_pages(&f->region, f->region.bytes));
    if (ret) {
        error_set(e, VMSNAP_EXIT_KERNEL, -ret, "cannot write-protect the memory");
        return false;
    }
    printf("{\"type\": \"protected\", \"arm_ns\": %llu}\n",
           (unsigned long long)(clock_monotonic_ns() - from));
    return true;
}

/* Serves until stdin is closed. */
static bool run(struct floor *f, struct error *e)
{
    struct uffd_msg messages[BATCH_MESSAGES];
    uint64_t busy_until = 0;
    while (!f->ended) {
        int n = uffd_read_messages(f->uffd, messages, BATCH_MESSAGES);
        if (n > 0) {
            serve(f, messages, n);
            busy_until = clock_monotonic_ns() + BUSY_READ_NS;
        } else if (n < 0) {
            error_set(e, VMSNAP_EXIT_FAILED, -n, "cannot read the userfaultfd");
            return false;
        } else if (clock_monotonic_ns() >= busy_until) {
            struct pollfd fds[2] = {{.fd = f->uffd, .events = POLLIN},
                                    {.fd = STDIN_FILENO, .events = POLLIN}};
            poll(fds, 2, -1);
            if (fds[1].revents && !obey(f, e))
                return false;
        }
    }
    return true;
}

static void prepare_thread(void)
{
    struct sched_param lowest_real_time = {.sched_priority = 1};
    if (sched_setscheduler(0, SCHED_RR, &lowest_real_time))
        fprintf(stderr, "vmsnap-bench: at normal priority: %s\n", strerror(errno));
    if (mlockall(MCL_CURRENT | MCL_FUTURE))
        fprintf(stderr, "vmsnap-bench: memory is not locked: %s\n", strerror(errno));
}

int floor_run(pid_t pid, uint64_t start, uint64_t bytes, unsigned n_busy, struct error *e)
{
    struct floor f = {.uffd = -1, .region.fd = -1};
    int ret = target_open(&f.target, pid, e);
    if (ret)
        return ret;
    setvbuf(stdout, NULL, _IOLBF, 0);
    ret = attach(&f, start, bytes, e);
    if (!ret)
        ret = start_busy(&f, n_busy, e);
    if (!ret) {
        prepare_thread();
        puts("{\"type\": \"ready\"}");
        ret = run(&f, e) ? 0 : -EIO;
        end_busy(&f);
        uffd_unregister_pieces(f.uffd, f.region.hva, region_whole_pages(&f.region, f.region.bytes));
        printf("{\"type\": \"summary\", \"faults\": %llu, \"holes\": %llu, \"failures\": %llu}\n",
               (unsigned long long)f.faults, (unsigned long long)f.holes,
               (unsigned long long)f.failures);
    }
    end_busy(&f);
    if (f.uffd >= 0)
        close(f.uffd);
    region_close(&f.region);
    target_close(&f.target);
    return ret;
}
