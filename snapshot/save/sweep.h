/* sweep.h - saves, in order, everything that no fault has saved. */
#ifndef VMSNAP_SNAPSHOT_SWEEP_H
#define VMSNAP_SNAPSHOT_SWEEP_H

#include "common/error.h"
#include "snapshot/save/capture.h"

struct sweep;

/* Starts the sweep's thread; `done_event` (an eventfd) is rung when every cluster is saved or the
 * snapshot has failed. */
int sweep_start(struct sweep **out, struct capture *c, struct image_writer *writer, int done_event,
                struct error *e);

/* Waits for the thread and frees. */
void sweep_join(struct sweep *s);

#endif
