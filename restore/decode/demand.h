/*
 * demand.h - faults that the server does not answer itself at once: their clusters are read and
 * decoded by threads of their own, and the faults are parked until then. These are the ones whose
 * content is not in the page cache; and, where many wait at a time, what others can decode beside
 * the server.
 *
 * What can't be read now, or hangs, is tried again later, and keeps nobody from being read
 * meanwhile: it waits in a table of its own (failing.h) and holds no slot; half of the slots at
 * most, and one thread, are busy with another try; and a read that hangs is left (intake.h).
 *
 * The server's thread alone posts, parks, installs and releases. No two threads decode the same
 * unit for faults: a unit that was posted is not posted again before it is released.
 */
#ifndef VMSNAP_RESTORE_DEMAND_H
#define VMSNAP_RESTORE_DEMAND_H

#include <stdbool.h>
#include <stdint.h>

#include "restore/decode/queue.h"
#include "restore/memory/blocks.h"
#include "restore/read/intake.h"

struct demand;

struct demand_config {
    struct intake *intake;
    struct queue *queue; /* woken when something is ready */
    uint64_t unit_bytes; /* the largest */
};

#define DEMAND_THREADS 2u

/* Starts the threads. 0 or -errno. */
int demand_start(struct demand **out, const struct demand_config *config);

/* Ends and joins them (intake_stop() first), and frees. NULL is allowed. */
void demand_stop(struct demand *d);

/*
 * Has the unit of n clusters from `first` on read and decoded, unless that is under way.
 * `is_quick`: it is thought to be in the page cache. DEMAND_FULL: no room now; it is to be posted
 * again after the next demand_release(). Never waits.
 */
enum demand_answer { DEMAND_POSTED, DEMAND_UNDER_WAY, DEMAND_FULL };
enum demand_answer demand_post(struct demand *d, const struct block *b, uint64_t first, uint32_t n,
                               bool is_quick);

/* Does the work of one that is quick and that no thread has begun with, if that needs no waiting.
 * False: there is none. */
bool demand_help(struct demand *d, struct codec *codec);

/* One that is ready: its job (as in queue.h) and content. False: none. */
bool demand_next(struct demand *d, uint32_t *slot);
const struct job *demand_job(const struct demand *d, uint32_t slot);
const unsigned char *demand_content(const struct demand *d, uint32_t slot);
/* It can't be installed now: it comes again, after the others that are ready. False: not yet. */
bool demand_put_back(struct demand *d, uint32_t slot);
/* It is installed, or given up. */
void demand_release(struct demand *d, uint32_t slot);

/* As demand_release(), and it is tried again after a while (demand_tick() does that). False: there
 * is no room to remember it; who waits for it must come again. */
bool demand_fail(struct demand *d, uint32_t slot, uint64_t now_ns);

/* Posts what is to be tried again. True while something is waiting for that. */
bool demand_tick(struct demand *d, uint64_t now_ns);

/* Something failed, and waits to be tried again or is. Any thread. */
bool demand_is_failing(const struct demand *d);

/* Units that are being read, or are ready; what waits to be tried again is not among them. */
unsigned demand_under_way(const struct demand *d);

#endif
