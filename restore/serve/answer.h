/*
 * answer.h - what to do about one fault, one event or one decoded job. The server's thread calls;
 * it is the only one that installs (install.h says why).
 */
#ifndef VMSNAP_RESTORE_ANSWER_H
#define VMSNAP_RESTORE_ANSWER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/codec.h"
#include "restore/decode/ahead.h"
#include "restore/decode/demand.h"
#include "restore/decode/learn.h"
#include "restore/decode/queue.h"
#include "restore/memory/install.h"
#include "restore/read/trouble.h"

#define DAMAGE_NAMED_MAX 64u /* places that are named in error messages, of each kind */

struct answer_counts {
    uint64_t pages_on_demand, pages_prefetched, pages_ahead, pages_filled, pages_discarded;
    uint64_t clusters_damaged; /* found so, poisoned or not */
    uint64_t pages_poisoned;   /* for damage; not those that were poisoned at the instant */
};

struct answerer {
    struct installer installer;
    const struct target *target;
    const struct image *img;
    const struct blocks *blocks;
    struct page_state *state;
    struct trouble_list *troubles; /* where damage is reported */
    bool untold;                   /* what the guest gives back shows only when it is touched */
    bool poisons;                  /* what is damaged is poisoned; else whoever touches it waits */
    struct intake *intake;
    struct demand *demand; /* reads what the page cache does not hold */
    struct ahead *ahead;   /* told what is demanded */
    struct learn *learn;   /* that, too; may be NULL */
    struct codec *codec;
    unsigned char *unit; /* decoded content, of the largest unit */
    uint32_t own_units;  /* of those that wait, so many may be decoded here; others elsewhere */
    uint64_t unit_first; /* the cluster that `unit` starts with; UINT64_MAX: nothing valid */
    struct answer_counts counts;
    bool said_wait;        /* that the guest has come to damage */
    bool guest_waits;      /* for good: for damage, or for what is nowhere */
    bool said_unread_wait; /* that it has come to what can't be read now */
    uint64_t n_unread;     /* clusters that the fill could not read, but may yet (an I/O error) */
    uint64_t unread_named[DAMAGE_NAMED_MAX]; /* those of which that was said */
    unsigned n_unread_named;
};

/* Fill in the pointers first. 0 or -ENOMEM. */
int answerer_init(struct answerer *a, int uffd);
void answerer_free(struct answerer *a);

enum answer {
    ANSWERED,
    AGAIN_EVENT, /* an event must be read first */
    AGAIN_ROOM,  /* no memory for it now */
    AGAIN_JOB,   /* a worker is writing it (in_place.h): after its job */
    ELSEWHERE,   /* a fault: another thread reads its content; it is to be looked at again then */
    AGAIN_PLACE, /* a fault: as soon as that one has a place for it */
    LATER,       /* a job: it could not be read now */
    NEVER,       /* it waits for good: its content can't be had */
};

/* A MISSING fault. Decodes, installs the whole unit around it, wakes. */
enum answer answer_fault(struct answerer *a, uint64_t hva, bool write);

/* Whether answer_job() will take from the file of shared memory what was discarded meanwhile. */
bool answer_job_punches(const struct answerer *a, const struct job *job);

/* A job of the fill workers or of the demand threads. */
enum answer answer_job(struct answerer *a, const struct job *job, const unsigned char *data);

/* The end of an installing call that returned `rc` (install.h): what [offset, offset + len) is
 * then.
 */
enum answer answer_settled(struct answerer *a, const struct block *b, uint64_t offset, uint64_t len,
                           int rc);

/* Some of what was looked at can't be had, now or for good, and is not poisoned either. */
bool answerer_is_incomplete(const struct answerer *a);

/* Whether the registration may be dropped: what is not in would read as zeros from then on. So no
 * count is believed: the state of every cluster is looked at (a millisecond per 8 GiB). */
bool answerer_is_all_in(struct answerer *a);

/* Posts the next cluster from *cluster on that the fill could not read. False: there is none. */
bool answerer_post_unread(struct answerer *a, uint64_t *cluster);

/* An event: the guest gave [start, end) back, or the process unmapped or moved it. */
void answer_discard(struct answerer *a, uint64_t start, uint64_t end);

#endif
