/*
 * prefetch.h - what is brought in before anybody asks for it, and in which order: the clusters that
 * an earlier run of the image learned (workset.h), then those that the guest wrote right after the
 * instant (the image's hot list); each once.
 *
 * Two orders are wanted. The guest should find first what it touches first: so clusters are decoded
 * in the order of touches. The disk should go forward in large steps: so a thread has the kernel
 * read the file ahead of that, in windows of the order, each as one sweep by file offset, while the
 * VMM still starts. What the page cache holds is left out; if that is all, nothing is started.
 */
#ifndef VMSNAP_RESTORE_PREFETCH_H
#define VMSNAP_RESTORE_PREFETCH_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/image/reader.h"
#include "restore/decode/workset.h"

struct prefetch {
    const struct image *img;
    uint64_t *entries; /* as in a working set */
    uint64_t n;
    uint64_t n_learned; /* the first of them */
    pthread_t reader;
    bool has_reader;
    atomic_bool stop;
};

/* Puts the order together; `learned` may be NULL. 0 or -ENOMEM. */
int prefetch_plan(struct prefetch *p, const struct image *img, const struct workset *learned,
                  bool hot);
/* Starts the thread that reads ahead, if there is anything to. Without one (no memory) all is only
 * slower. */
void prefetch_begin_reading(struct prefetch *p);

/* Ends it, and frees. Any state. */
void prefetch_free(struct prefetch *p);

#endif
