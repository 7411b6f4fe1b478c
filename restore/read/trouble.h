/* trouble.h - what went wrong while serving, on its way to the main thread,
 * which tells the user. */
#ifndef VMSNAP_RESTORE_TROUBLE_H
#define VMSNAP_RESTORE_TROUBLE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

#define TROUBLE_MAX 16

struct trouble_list {
    pthread_mutex_t lock;
    struct error items[TROUBLE_MAX];
    unsigned first, count;
    uint64_t dropped; /* beyond TROUBLE_MAX that nobody has taken yet */
    uint64_t said;    /* bit mask of what trouble_add_once() has said */
    int event_fd;     /* not owned: written when something was added */
};

void trouble_init(struct trouble_list *t, int event_fd);
void trouble_free(struct trouble_list *t);

/* Copies *e into the list; beyond TROUBLE_MAX it is only counted, unless it is the first there that
 * says that the guest waits. */
void trouble_add(struct trouble_list *t, const struct error *e);

/* The same, but only the first time for this `kind` (0 to 63). */
void trouble_add_once(struct trouble_list *t, const struct error *e, unsigned kind);

/* The oldest: true and *e. */
bool trouble_take(struct trouble_list *t, struct error *e);

#endif
