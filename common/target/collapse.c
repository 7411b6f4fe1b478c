#include "common/target/collapse.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/kernel.h"
#include "common/log.h"

#define MOST_WITHOUT_MEMORY 4u
#define FEWEST 4u
/* A call that takes longer than this for each huge page has waited for something else. */
#define SLOW_NS 2000000u

bool collapse_is_possible(void)
{
    return kernel_probe()->collapse;
}

/* madvise(2), MADV_COLLAPSE; process_madvise(2). */
static enum collapse_result result_of(int err)
{
    switch (err) {
    case ESRCH:
        return COLLAPSE_GONE;
    case EAGAIN:
    case EINTR:
        return COLLAPSE_AGAIN;
    case ENOMEM: /* nothing mapped there, too, and so it is over soon */
    case EBUSY:
        return COLLAPSE_NO_MEMORY;
    default:
        return COLLAPSE_REFUSED;
    }
}

unsigned collapse_batch(const struct collapse_run *run)
{
    return run->batch ? run->batch : FEWEST;
}

/* Twice as many after a call that was slow, half as many after one that was not. */
static void adapt(struct collapse_run *run, uint64_t ns, unsigned n)
{
    unsigned batch = collapse_batch(run);
    bool slow = ns > (uint64_t)SLOW_NS * n;
    if (slow && batch < COLLAPSE_MOST && !run->keep_few)
        batch *= 2;
    else if (!slow && batch > FEWEST)
        batch /= 2;
    run->batch = batch;
    run->n_calls++;
    run->busy_ns += ns;
    if (ns > run->longest_ns)
        run->longest_ns = ns;
}

static enum collapse_result collapse(const struct target *t, uint64_t hva, unsigned n)
{
    struct iovec v = {.iov_base = (void *)(uintptr_t)hva, .iov_len = n * COLLAPSE_BYTES};
    if (syscall(SYS_process_madvise, t->pidfd, &v, 1ul, MADV_COLLAPSE, 0u) >= 0)
        return COLLAPSE_DONE;
    int err = errno;
    log_debug("not all huge pages at 0x%llx + %u: %s", (unsigned long long)hva, n, strerror(err));
    return result_of(err);
}

bool collapse_next(struct collapse_run *run, const struct target *t, uint64_t hva, unsigned n,
                   enum collapse_result *result)
{
    uint64_t from = clock_monotonic_ns();
    *result = collapse(t, hva, n);
    adapt(run, clock_monotonic_ns() - from, n);
    run->n_failed += *result != COLLAPSE_DONE;
    run->no_memory = *result == COLLAPSE_NO_MEMORY ? run->no_memory + 1 : 0;
    return *result != COLLAPSE_GONE && run->no_memory < MOST_WITHOUT_MEMORY;
}
