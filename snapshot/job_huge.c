/* job_huge.c - the steps that mind huge pages; see job.h. */
#include <poll.h>

#include "snapshot/job.h"

#define TICK_MS 200

int job_note_huge(struct job *j, struct error *e)
{
    int ret = huge_note(&j->huge, &j->source->target, j->source->regions, j->source->n_regions);
    return ret ? error_set(e, VMSNAP_EXIT_FAILED, -ret, "cannot note huge pages") : 0;
}

void job_wait_for_huge(struct job *j)
{
    atomic_store(&j->board->finishing, false); /* the guardian leaves signals to us again */
    progress_start(&j->progress, "huge pages", j->options->progress);
    struct pollfd fds[3] = {{.fd = huge_event_fd(j->huge), .events = POLLIN},
                            {.fd = j->source->target.pidfd, .events = POLLIN},
                            {.fd = j->signal_fd, .events = POLLIN}};
    while (fds[0].fd >= 0 && !fds[0].revents && !fds[1].revents && !job_interrupted(j)) {
        poll(fds, 3, TICK_MS);
        progress_update(&j->progress, huge_bytes_settled(j->huge), huge_bytes_before(j->huge),
                        atomic_load(&j->capture.write_faults));
    }
    progress_finish(&j->progress);
    huge_stop(j->huge);
}
