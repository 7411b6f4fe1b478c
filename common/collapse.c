#include "common/collapse.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/kernel.h"
#include "common/log.h"

#define MOST_WITHOUT_MEMORY 8u

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

enum collapse_result collapse_unit(const struct target *t, uint64_t hva)
{
    struct iovec v = {.iov_base = (void *)(uintptr_t)hva, .iov_len = COLLAPSE_BYTES};
    if (syscall(SYS_process_madvise, t->pidfd, &v, 1ul, MADV_COLLAPSE, 0u) >= 0)
        return COLLAPSE_DONE;
    int err = errno;
    log_debug("no huge page at 0x%llx: %s", (unsigned long long)hva, strerror(err));
    return result_of(err);
}

bool collapse_next(struct collapse_run *run, const struct target *t, uint64_t hva,
                   enum collapse_result *result)
{
    *result = collapse_unit(t, hva);
    if (*result == COLLAPSE_DONE)
        run->n_done++;
    else
        run->n_failed++;
    run->no_memory = *result == COLLAPSE_NO_MEMORY ? run->no_memory + 1 : 0;
    return *result != COLLAPSE_GONE && run->no_memory < MOST_WITHOUT_MEMORY;
}
