/*
 * control.h - what those sources have in common whose VMM is driven over a control socket in
 * QMP's wire form: QEMU, and a VMM of somebody's own (docs/vmm.md). Private to snapshot/source/.
 */
#ifndef VMSNAP_SNAPSHOT_SOURCE_CONTROL_H
#define VMSNAP_SNAPSHOT_SOURCE_CONTROL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/hazards.h"
#include "common/qmp.h"
#include "common/target/region.h"
#include "snapshot/source/disk_sync.h"
#include "snapshot/source/source.h"

/* What worker and guardian both see: a page shared over fork(). */
struct source_control_shared {
    atomic_bool stopped_by_us; /* set before `stop` is sent, cleared once the VM runs again */
};

struct source_control {
    struct source base; /* first: the engine's view */
    struct qmp *q;
    struct region_set memory; /* what base.regions and base.gpa point into */
    struct hazard hazards[HAZARD_MAX];
    size_t n_hazards;
    struct source_control_shared *shared;
    struct disk_sync disk_sync;
    int state_fd; /* memfd that takes the device state; -1 */
    uint64_t stop_sent_ns, stopped_ns, cont_sent_ns, running_ns; /* CLOCK_MONOTONIC */
    int64_t stop_event_us, resume_event_us;                      /* the VMM's stamps; -1 */
};

static inline struct source_control *source_control_of(struct source *s)
{
    return (struct source_control *)s;
}

/* A connection whose greeting has come, and the process behind it, locked for this snapshot. */
struct source_link {
    struct qmp *q;
    struct target target;
    bool pid_given; /* --pid named the process */
};

/* Both take the link over, also on failure. source/qemu.c, source/vmm.c. */
int source_qemu_open(struct source **out, struct source_link *link, int timeout_ms,
                     struct error *e);
int source_vmm_open(struct source **out, struct source_link *link, int timeout_ms, struct error *e);

void source_link_close(struct source_link *link);

/* source/open.c: finds the VM's process, `pid` or the one that listens on the socket, and takes it
 * for this snapshot. One whose memory is still being brought in is refused before it is asked
 * anything: with nobody there to do that, its main loop may wait for a page and never answer. */
int source_link_find_process(struct source_link *link, int control_socket, pid_t pid,
                             struct error *e);

/* Takes the link over. `c` is zeroed memory; source_control_close() whatever is returned. */
int source_control_init(struct source_control *c, const struct source_ops *ops,
                        const struct source_link *link, int timeout_ms, struct error *e);
/* Closes all that is in it; the memory of `c` itself stays the caller's. */
void source_control_close(struct source_control *c);

/* Refuses run states in which a snapshot makes no sense: exit codes 10, 11. */
int source_control_refuse_state(struct source_control *c, struct error *e);

/* Makes c->memory what the engine sees. */
void source_control_show_memory(struct source_control *c);

/* Looks for the hazards that the kernel shows and, with `described` (machine_describe() of a QEMU),
 * those that QEMU says; what is only told goes to `warnings`. */
int source_control_find_hazards(struct source_control *c, const json_t *described, json_t *warnings,
                                struct error *e);

/* Operations of struct source_ops. */
int source_control_refuse_hazards(struct source *s, const char *const *allowed, struct error *e);
int source_control_prepare_memory(struct source *s, struct error *e);
int source_control_restore_memory(struct source *s, struct error *e);

/* ---- source/control_pause.c: around the instant ---- */

/* Stops a running VM and says so; leaves a paused one as it is. On failure after `stop` was sent
 * the VM may be stopped: the caller calls resume. */
int source_control_stop(struct source_control *c, bool *was_running, struct error *e);

/* Continues the VM if source_control_stop() stopped it. May be called twice. */
int source_control_continue(struct source_control *c, struct error *e);

/* A memfd for the device state, opened for writing alone: *write_fd is the caller's to close. */
int source_control_make_state_fd(struct source_control *c, int *write_fd, struct error *e);

/* What was written to it: *buf is malloc()ed. Exit code 16 when it has no sensible length. */
int source_control_read_state(struct source_control *c, void **buf, size_t *len, struct error *e);

/* Empties and closes it: a VMM may keep its own descriptor, but no memory stays with that. */
void source_control_drop_state(struct source_control *c);

/* Operations of struct source_ops. prepare_pause syncs the VM's disk files. */
int source_control_prepare_pause(struct source *s, int (*tick)(void *opaque), void *opaque,
                                 struct error *e);
int source_control_resume_after_death(struct source *s, struct error *e);
void source_control_pause_times(const struct source *s, struct pause_times *times);

#endif
