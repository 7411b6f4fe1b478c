/*
 * copier.h - the fault thread's copies: clusters are claimed, copied into buffers, and handed on to
 * the compressors only when the fault thread says so, after the guest's thread goes on. The fault
 * thread's alone; allocates nothing, waits for nothing but a buffer.
 */
#ifndef VMSNAP_SNAPSHOT_COPIER_H
#define VMSNAP_SNAPSHOT_COPIER_H

#include <stdbool.h>
#include <stdint.h>

#include "snapshot/save/capture.h"

#define COPIER_PENDING 64u

struct copier {
    struct capture *capture;
    unsigned n_pending;
    struct {
        uint32_t buffer;
        struct captured captured;
    } pending[COPIER_PENDING];
};

enum copier_patience {
    COPIER_WAIT, /* a fault's own clusters: takes from the reserve, waits for a buffer (counted) */
    COPIER_TRY,  /* neighbours: POOL_AROUND, down to a quarter of the reserve; waits for nothing */
};

/*
 * Copies all clusters of [from, to) that nobody has saved. True: all are saved now. False: buffers
 * were short (COPIER_TRY), or the snapshot has failed. *copied (may be NULL): some were copied.
 */
bool copier_save(struct copier *k, const struct cluster_range *range, uint64_t from, uint64_t to,
                 enum copier_patience patience, bool *copied);

/* Hands on what was copied. */
void copier_hand_on(struct copier *k);

#endif
