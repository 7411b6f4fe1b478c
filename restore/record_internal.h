/* record_internal.h - the layout of the record, and what the files that make and read it share
 * (record.c tells the whole). */
#ifndef VMSNAP_RESTORE_RECORD_INTERNAL_H
#define VMSNAP_RESTORE_RECORD_INTERNAL_H

#include <assert.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/types.h>

#include "restore/record.h"

struct record_block {
    char name[REGION_NAME_MAX];
    uint64_t hva, bytes, page_bytes;
    uint64_t image_offset; /* blocks_place() */
    uint32_t kind;         /* enum region_kind */
    uint32_t has_window;   /* registered for minor faults too, and filled through a window */
};

enum record_wish { WISH_NONE, WISH_HAND_OVER, WISH_REFUSED };

struct record_header {
    struct record_facts facts;
    atomic_uint stage; /* enum record_stage */
    atomic_uint guest; /* enum record_guest */
    atomic_uint wish;  /* enum record_wish */
    uint32_t reserved;
    struct uffd_msg messages[SERVER_MESSAGES];
    struct record_block blocks[];
};
static_assert(offsetof(struct record_header, stage) == offsetof(struct record_head, stage),
              "what others look at");
static_assert(CLUSTER_DONE == RECORD_STATE_DONE && CLUSTER_DAMAGED == RECORD_STATE_DAMAGED,
              "what others look at");

/* Where the states begin. */
uint64_t record_states_at(uint32_t n_blocks);

/* An opening of our own (which is what a lock belongs to) of what `copy` is. `is_right`: whether
 * its seals and its length are as they have to be. */
int record_open_copy(struct record *r, const struct target *t, int copy,
                     bool (*is_right)(int seals, off_t bytes), struct error *e);
bool record_is_sealed(int seals, off_t bytes);

/* Of r->bytes. The VMM could change the length until the seals are on, so it is looked at
 * afterwards. */
int record_size_and_seal(struct record *r, const struct target *t, struct error *e);

int record_map(struct record *r, const struct target *t, struct error *e);
int record_take_lock(struct record *r, const struct target *t, bool asks, struct error *e);
void record_write_header(struct record *r, const struct image *img, const char *path,
                         const struct blocks *blocks);

#endif
