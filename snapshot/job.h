/*
 * job.h - one snapshot under way: what its steps share. Private to snapshot.c (the steps in order,
 * and every end), job_pause.c (before the instant, and the pause), job_finish.c, job_huge.c and
 * job_summary.c.
 */
#ifndef VMSNAP_SNAPSHOT_JOB_H
#define VMSNAP_SNAPSHOT_JOB_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/progress.h"
#include "snapshot/guardian.h"
#include "snapshot/interrupts.h"
#include "snapshot/memory/huge.h"
#include "snapshot/output.h"
#include "snapshot/save/capture.h"
#include "snapshot/save/faults.h"
#include "snapshot/save/live.h"
#include "snapshot/save/sweep.h"
#include "snapshot/snapshot.h"
#include "snapshot/source/source.h"
#include "snapshot/watch.h"

struct job {
    const struct snapshot_options *options;
    struct guardian_board *board;
    struct source *source;
    json_t *description;
    json_t *warnings;
    struct output output;
    struct capture capture;
    bool capture_ready;
    struct sweep *sweep;
    struct watch *watch;
    struct live live;
    struct huge *huge;
    json_t *precopy_passes;
    struct progress progress;
    uint64_t armed_in_pause; /* clusters */
    struct interrupts interrupts;
    int done_event;
    bool unmerged;
    bool was_running;
    bool pause_begun, pause_over; /* in between what the source has done is to be undone */
    void *device_state;
    size_t device_state_bytes;
    struct pause_times pause;
    uint64_t started_ns, instant_ns, finished_ns;
    uint64_t throttling_from_ns, throttling_until_then_ns; /* job_note_throttling() */
    bool throttling_told;
};

/* Takes note of signals. True: one of them asks us to end. */
bool job_interrupted(struct job *j);
void job_show_progress(struct job *j);

/* Says, once, when writes of the guest wait for buffers most of the time. Each may wait for less
 * than --max-stall, and the guest still hardly gets anywhere. Call it now and then. */
void job_note_throttling(struct job *j);

/* Which huge pages there are, before anything is protected. */
int job_note_huge(struct job *j, struct error *e);

/* The image has its name: waits until they are put together again, 10 s at most, and not at all if
 * the image went to stdout. A signal, or the VM's end, ends that and no more. */
void job_finish_huge(struct job *j);

/* The guest runs: protects, and with --precopy saves, so that as little as can be is left to the
 * pause. */
int job_arm_live(struct job *j, struct error *e);

/* From stop to cont. The board says so beforehand: the guardian resumes the VM if we die. */
int job_pause(struct job *j, struct error *e);

/* The guest is free of us: compresses and writes what is left, and publishes the image. From here
 * on the guardian may simply kill us when the user asks. */
int job_finish(struct job *j, struct error *e);

/* The keys of CLI.md, once the image is published: a new reference. */
json_t *job_summary(const struct job *j);

/* -vv: a table with a line for each stage: what its threads were busy with, what they waited for,
 * and how much came of it. Times are wall times of threads that run side by side: those of all
 * compressors are added up, and a thread without a CPU counts as busy. */
void job_explain(const struct job *j);

#endif
