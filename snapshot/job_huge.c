/* job_huge.c - the steps that mind huge pages; see job.h. */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "snapshot/job.h"

#define TICK_MS 200
#define MOST_WAIT_S 10u

static int tick(void *opaque)
{
    return job_interrupted(opaque) ? -EINTR : 0;
}

static bool is_allowed(const struct job *j, const char *hazard)
{
    const char *const *allowed = j->options->allowed;
    while (allowed && *allowed && strcmp(*allowed, hazard) != 0)
        allowed++;
    return allowed && *allowed;
}

int job_note_huge(struct job *j, struct error *e)
{
    int ret =
        huge_note(&j->huge, &j->source->target, j->source->regions, j->source->n_regions, tick, j);
    if (ret == -EINTR)
        return ret;
    if (!ret && is_allowed(j, "balloon"))
        huge_expect_discards(j->huge);
    return ret ? error_set(e, VMSNAP_EXIT_FAILED, -ret, "cannot note huge pages") : 0;
}

static void wait_for_huge(struct job *j)
{
    uint64_t deadline = clock_monotonic_ns() + MOST_WAIT_S * 1000000000ull;
    progress_start(&j->progress, "huge pages", j->options->progress);
    struct pollfd fds[3] = {{.fd = huge_event_fd(j->huge), .events = POLLIN},
                            {.fd = j->source->target.pidfd, .events = POLLIN},
                            {.fd = j->interrupts.fd, .events = POLLIN}};
    while (fds[0].fd >= 0 && !fds[0].revents && !fds[1].revents && !job_interrupted(j)) {
        if (clock_monotonic_ns() > deadline) {
            log_info("huge pages: not all are put together after %u s: the rest is left to "
                     "khugepaged",
                     MOST_WAIT_S);
            break;
        }
        poll(fds, 3, TICK_MS);
        progress_update(&j->progress, huge_bytes_settled(j->huge), huge_bytes_before(j->huge),
                        atomic_load(&j->capture.write_faults));
    }
    progress_finish(&j->progress);
}

void job_finish_huge(struct job *j)
{
    /* Whoever reads an image from our stdout waits for its end, which is ours. */
    if (strcmp(j->options->image_path, "-") != 0)
        wait_for_huge(j);
    huge_stop(j->huge);
}
