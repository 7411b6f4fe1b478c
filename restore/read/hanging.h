/*
 * hanging.h - reads that do not come back, left to the processes that make them (reader.h), so that
 * the threads which wanted them can read elsewhere meanwhile. Any thread.
 */
#ifndef VMSNAP_RESTORE_HANGING_H
#define VMSNAP_RESTORE_HANGING_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "restore/read/reader.h"

/* Each costs a process, of about 200 KiB. */
#define HANGING_MAX 64u

/* A read that was asked for and is not answered yet. */
struct reading {
    struct reader reader;
    uint64_t cluster, began_ns;
    bool fresh;  /* past the page cache */
    bool stalls; /* for so long that it counts as stalled (intake.h) */
};

struct hanging {
    pthread_mutex_t lock; /* a leaf; held for a moment */
    struct reading items[HANGING_MAX];
    unsigned n;
};

void hanging_init(struct hanging *h);
/* Ends their processes, or leaves them to end by themselves. */
void hanging_free(struct hanging *h);

/* Takes it over. False: there is no room. */
bool hanging_leave(struct hanging *h, const struct reading *r);

/* The one of this cluster, to wait for it again. False: there is none. */
bool hanging_take(struct hanging *h, uint64_t cluster, struct reading *r);

bool hanging_any(struct hanging *h);

#endif
