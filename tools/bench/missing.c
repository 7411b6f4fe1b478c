/*
 * Theory of operation
 *
 * What a missing page costs when its content lies ready: the least that any restore on demand can
 * cost the guest. The memory of the stopped guest is a file that is mapped here, present in whole.
 * Faults are read in the batches that vmsnap reads, by a thread of the same priority that goes on
 * reading as long after a fault; for each one UFFDIO_COPY of one page, or of the cluster round it.
 * No image is read, nothing is decoded, no state is kept, nobody prefetches.
 */
#include "tools/bench/missing.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/image/format.h"
#include "common/inject/inject.h"
#include "common/uffd.h"

/* As vmsnap's server of page faults (restore/serve/serve.c, restore/serve/linger.h). */
#define BATCH_MESSAGES 64
#define BUSY_READ_NS 200000u
#define SERVER_NICE (-10)
#define TIMER_SLACK_NS 1000

#define ATTACH_MS 5000

struct missing {
    struct target target;
    int uffd;
    uint64_t start, bytes, unit_bytes;
    const unsigned char *content; /* `bytes` of it */
    uint64_t faults, present, failures;
};

static int map_content(struct missing *m, const char *path, struct error *e)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st))
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "cannot read %s", path);
    if (st.st_size <= 0 || st.st_size % IMAGE_PAGE_BYTES != 0)
        return error_set(e, VMSNAP_EXIT_FAILED, EINVAL, "%s is not whole pages of memory", path);
    void *content = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    if (content == MAP_FAILED)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "cannot map %s", path);
    m->content = content;
    m->bytes = (uint64_t)st.st_size;
    return 0;
}

static int attach(struct missing *m, struct error *e)
{
    int ret = inject_userfaultfd(&m->target, &m->uffd, NULL, ATTACH_MS, e);
    if (ret)
        return ret;
    ret = uffd_enable(m->uffd, 0);
    if (!ret)
        ret = uffd_register(m->uffd, m->start, m->bytes, UFFDIO_REGISTER_MODE_MISSING, NULL);
    return ret ? error_set(e, VMSNAP_EXIT_KERNEL, -ret, "cannot register the memory") : 0;
}

/* A second fault in a unit may be read after its pages came in: who waits is woken. */
static void answer(struct missing *m, uint64_t hva)
{
    uint64_t offset = (hva - m->start) / m->unit_bytes * m->unit_bytes, left = m->bytes - offset;
    uint64_t len = m->unit_bytes < left ? m->unit_bytes : left;
    int ret = uffd_copy(m->uffd, m->start + offset, m->content + offset, len, true, NULL);
    if (ret == -EEXIST) {
        m->present++;
        ret = uffd_wake(m->uffd, m->start + offset, len);
    } else {
        m->faults++;
    }
    m->failures += ret != 0;
}

static void answer_all(struct missing *m, const struct uffd_msg *messages, int n)
{
    for (int i = 0; i < n; i++) {
        uint64_t hva = messages[i].arg.pagefault.address;
        if (messages[i].event == UFFD_EVENT_PAGEFAULT && hva - m->start < m->bytes)
            answer(m, hva);
        else
            m->failures++;
    }
}

/* Until stdin is closed. */
static int serve(struct missing *m, struct error *e)
{
    struct uffd_msg messages[BATCH_MESSAGES];
    uint64_t busy_until = 0;
    for (;;) {
        int n = uffd_read_messages(m->uffd, messages, BATCH_MESSAGES);
        if (n > 0) {
            answer_all(m, messages, n);
            busy_until = clock_monotonic_ns() + BUSY_READ_NS;
        } else if (n < 0) {
            return error_set(e, VMSNAP_EXIT_FAILED, -n, "cannot read the userfaultfd");
        } else if (clock_monotonic_ns() >= busy_until) {
            struct pollfd fds[2] = {{.fd = m->uffd, .events = POLLIN},
                                    {.fd = STDIN_FILENO, .events = POLLIN}};
            poll(fds, 2, -1);
            if (fds[1].revents)
                return 0;
        }
    }
}

static int attach_and_serve(struct missing *m, const char *path, struct error *e)
{
    int ret = map_content(m, path, e);
    if (!ret)
        ret = attach(m, e);
    if (ret)
        return ret;
    if (setpriority(PRIO_PROCESS, 0, SERVER_NICE))
        fprintf(stderr, "vmsnap-bench: at normal priority: %s\n", strerror(errno));
    prctl(PR_SET_TIMERSLACK, TIMER_SLACK_NS);
    puts("{\"type\": \"ready\"}");
    ret = serve(m, e);
    printf("{\"type\": \"summary\", \"faults\": %" PRIu64 ", \"present\": %" PRIu64
           ", \"failures\": %" PRIu64 "}\n",
           m->faults, m->present, m->failures);
    return ret;
}

int missing_run(pid_t pid, uint64_t start, const char *path, uint64_t unit_bytes, struct error *e)
{
    struct missing m = {.uffd = -1, .start = start, .unit_bytes = unit_bytes};
    int ret = target_open(&m.target, pid, e);
    if (ret)
        return ret;
    setvbuf(stdout, NULL, _IOLBF, 0);
    ret = attach_and_serve(&m, path, e);
    if (m.uffd >= 0)
        close(m.uffd);
    if (m.content)
        munmap((void *)m.content, m.bytes);
    target_close(&m.target);
    return ret;
}
