/*
 * watch.h - a small thread that keeps an eye on a snapshot while the main thread may be waiting for
 * the VMM: gives the guardian its heartbeat, notices that a write is held too long, that the VMM
 * has ended, that the sink has failed; and then drops protection at once.
 */
#ifndef VMSNAP_SNAPSHOT_WATCH_H
#define VMSNAP_SNAPSHOT_WATCH_H

#include "common/error.h"
#include "common/sink/sink.h"
#include "snapshot/guardian.h"
#include "snapshot/save/capture.h"

struct watch;

/* Borrows all. `capture` must be complete (its memory registered). */
int watch_start(struct watch **out, struct capture *capture, const struct sink *sink,
                struct guardian_board *board, struct error *e);

/* Ends the thread. NULL is fine. */
void watch_stop(struct watch *w);

#endif
