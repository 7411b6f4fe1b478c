/*
 * live.h - before the instant: memory is protected while the guest runs, so that the pause has only
 * to protect what was written since.
 *
 * A live pass protects all that is DIRTY; a write to protected memory then makes its cluster DIRTY
 * again (faults.c), and the pass is repeated over what was written until that is little. So the
 * pause grows with the rate at which the guest writes, not with its memory.
 *
 * No write may be lost, that is, a cluster that is not LOOSE must be protected (or absent, which
 * tells as well). Two threads work on that, without a lock:
 *
 *     the pass:          DIRTY -> FROZEN    then protect
 *     the fault thread:  unprotect          then -> DIRTY
 *
 * However the four steps are interleaved, a cluster that ends up unprotected is DIRTY: unprotected
 * last means that DIRTY follows, and if FROZEN is set after that then its protection comes later
 * still. (What is left may be DIRTY and protected, which costs a call.) If the fault thread marked
 * first: DIRTY, FROZEN, protect, unprotect would leave a FROZEN cluster unprotected, and the next
 * write would go unseen. The same holds for a pass that protected first. Hence the order, which
 * the rule `dirty-before-unprotect` (common/testhook.h) breaks.
 *
 * A page that is absent (private anonymous memory) has a MISSING event in place of protection, and
 * is put in where the fault thread would otherwise unprotect.
 *
 * A discard changes content without a write fault, and takes effect at an unknown time after its
 * event was read: nothing that is copied before the instant can be trusted from then on. So what
 * was discarded is LEFT to the pause; likewise what was unmapped or moved, where protecting then
 * fails, and says so.
 *
 * Passes run on the main thread alone, and only before faults_freeze(): when the phase has changed
 * every write of before has been marked, since the fault thread itself changes it.
 */
#ifndef VMSNAP_SNAPSHOT_LIVE_H
#define VMSNAP_SNAPSHOT_LIVE_H

#include "common/error.h"
#include "snapshot/save/capture.h"
#include "snapshot/snapshot.h"

struct chunk_saver;

/* A pass that also saves. */
struct live_precopy {
    uint64_t write_faults; /* made meanwhile, each of them a cluster or more to save again */
    uint64_t saved_bytes;  /* copied: what is absent costs nothing */
    uint64_t ns;
};

struct live {
    struct capture *capture;
    /* Called every few milliseconds: not 0 ends the work, with that result. */
    int (*tick)(void *opaque);
    void *opaque;
    int timeout_ms;            /* for an event that is in the way */
    uint64_t n_tracked;        /* clusters that were chosen */
    unsigned passes;           /* made so far, those that save included */
    uint64_t ns;               /* spent in them */
    struct chunk_saver *saver; /* in a pass that saves; else NULL */
};

/*
 * Decides which memory is protected before the instant; the rest is left to the pause. By itself
 * (LIVE_AUTO): memory that is dear to protect, mapped by 4 KiB pages or shared, once there is
 * enough of it. `all`: everything (precopy saves only what is protected). The decision is logged.
 * The fault thread serves already.
 */
int live_choose(struct live *l, enum snapshot_live mode, bool all, struct error *e);

/*
 * A pass that saves what it has protected, as the sweep does: copied first, then taken unless it
 * was written meanwhile. A copy holds until a write or a discard makes its cluster LOOSE; then it
 * is saved again, by the next pass or after the instant, and the later record counts. So that it is
 * the later one in the image too, all copies of a pass are there before it returns: until then no
 * cluster is submitted a second time.
 */
int live_precopy(struct live *l, struct chunk_saver *saver, struct live_precopy *result,
                 struct error *e);

/* Passes until little is left, or it stops shrinking, or it takes too long. 0; what tick()
 * returned; or -errno. */
int live_settle(struct live *l, struct error *e);

#endif
