/* source_qemu.h - what the files of the QEMU source share. Private to snapshot/source_qemu*.c. */
#ifndef VMSNAP_SNAPSHOT_SOURCE_QEMU_H
#define VMSNAP_SNAPSHOT_SOURCE_QEMU_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/qemu/hazards.h"
#include "common/qemu/ramblock.h"
#include "common/qmp.h"
#include "snapshot/disk_sync.h"
#include "snapshot/source.h"

/* What worker and guardian both see: a page shared over fork(). */
struct source_qemu_shared {
    atomic_bool stopped_by_us; /* set before `stop` is sent, cleared once the VM runs again */
};

struct source_qemu {
    struct source base; /* first: the engine's view */
    struct qmp *q;
    struct region_set blocks;
    char *blocks_text; /* `info ramblock` as it was: nothing may have changed at the instant */
    json_t *plugged;   /* what is plugged, as it was described; NULL before */
    bool state_saved;  /* since then plugged has not been compared */
    struct hazard hazards[HAZARD_MAX];
    size_t n_hazards;
    struct source_qemu_shared *shared;
    int state_fd;        /* memfd that takes the device state; -1 */
    int64_t state_fdset; /* its number in QEMU; -1 */
    struct disk_sync disk_sync;
    uint64_t stop_sent_ns, stopped_ns, cont_sent_ns, running_ns; /* CLOCK_MONOTONIC */
    int64_t stop_event_us, resume_event_us;                      /* the VMM's stamps; -1 */
};

static inline struct source_qemu *source_qemu_of(struct source *s)
{
    return (struct source_qemu *)s;
}

/* source_qemu_pause.c: the operations around the instant, as in struct source_ops. */
int source_qemu_pause(struct source *s, bool *was_running, struct error *e);
int source_qemu_save_state(struct source *s, void **buf, size_t *len, struct error *e);
int source_qemu_resume(struct source *s, struct error *e);
int source_qemu_resume_after_death(struct source *s, struct error *e);
void source_qemu_pause_times(const struct source *s, struct pause_times *times);

/* What is plugged now: a new reference in *plugged, to be compared with json_equal(). */
int source_qemu_list_plugged(struct qmp *q, int timeout_ms, json_t **plugged, struct error *e);

/* Gives QEMU a descriptor for its device state, ahead of the pause, and takes it back. */
int source_qemu_offer_state_fd(struct source_qemu *s, struct error *e);
int source_qemu_withdraw_state_fd(struct source_qemu *s, struct error *e);

#endif
