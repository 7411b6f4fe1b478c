/*
 * clock_sync.h - a restored guest wakes in the past: --sync-clock sets its clock through an agent
 * in it. On a thread of its own, since the agent may have to come in page by page before it
 * answers, and meanwhile the main thread has a guest to look after.
 */
#ifndef VMSNAP_RESTORE_CLOCK_SYNC_H
#define VMSNAP_RESTORE_CLOCK_SYNC_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

#define CLOCK_SYNC_MAX_MS 10000 /* to find the agent, and again to talk to it */

struct clock_sync;

/* What came of it, as a supervisor keeps it for a successor. */
struct clock_outcome {
    bool known, synced, measured;
    int64_t difference_ns; /* if measured */
    uint64_t took_ns;
};

/*
 * Begins. `fd`: the connection to the agent, taken over; -1: there is none, for the reason in *why.
 * At most `timeout_ms`. A failure is a warning at once, and in the result. NULL when memory is
 * short.
 */
struct clock_sync *clock_sync_start(int fd, int timeout_ms, const struct error *why);

/* For the successor of a server that was to do it. NULL, or one that is not known: that one died
 * before it said what came of it. */
struct clock_sync *clock_sync_inherit(const struct clock_outcome *outcome);

/* Once it is over. */
struct clock_outcome clock_sync_outcome(const struct clock_sync *s);

/* Whether it is over, without waiting. NULL is allowed here and below: nothing was asked for. */
bool clock_sync_is_over(const struct clock_sync *s);

/* Waits for its end, and adds the result to an object: clock_synced, clock_difference_ns,
 * clock_sync_ns (each null: not known), warnings. */
void clock_sync_add(struct clock_sync *s, json_t *object);

/* Breaks it off if it is not over, and frees. */
void clock_sync_end(struct clock_sync *s);

#endif
