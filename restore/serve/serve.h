/*
 * serve.h - the server: the thread that answers the guest's faults and installs what the fill
 * workers decode, until the last page is in or the VMM has ended.
 */
#ifndef VMSNAP_RESTORE_SERVE_H
#define VMSNAP_RESTORE_SERVE_H

#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/histogram.h"
#include "restore/decode/fill.h"
#include "restore/memory/blocks.h"
#include "restore/memory/page_state.h"
#include "restore/serve/answer.h"

#define SERVER_MESSAGES 64u

struct server;

struct server_config {
    int uffd; /* registered for MISSING on all blocks; taken over */
    const struct target *target;
    const struct image *img;
    const struct blocks *blocks;
    struct page_state *state;        /* the server's alone from server_start() on */
    unsigned n_threads;              /* fill workers; 0: as many as there are CPUs */
    const struct prefetch *prefetch; /* NULL: nothing is prefetched */
    struct learn *learn;             /* told what is demanded; may be NULL */
    bool fill;
    unsigned crowd;       /* waiting.h; 0: the default. Tests and measurements choose */
    bool untold;          /* the userfaultfd tells nothing of discards */
    bool poison_damage;   /* needs kernel_features.poison; else a guest waits at what is damaged */
    uint64_t bytes_per_s; /* of memory that the fill brings in, at most; 0: no limit */
    /* SERVER_MESSAGES places where the kernel's messages are read to; the caller's. A server that
     * takes over from one that died looks at what that one had read there. */
    struct uffd_msg *messages;
    bool takes_over;
};

/* Starts the fault thread: from here on every fault is answered. Exit code 1 when
 * memory is short. */
int server_start(struct server **out, const struct server_config *config, struct error *e);

/* Starts the workers on what is prefetched. */
int server_begin_prefetch(struct server *s, struct error *e);

/* Lets them bring in all the rest (if config.fill). */
void server_begin_fill(struct server *s);

/* Readable when something below has changed. server_clear_event() before looking. */
int server_event_fd(const struct server *s);
void server_clear_event(struct server *s);

enum server_stage {
    SERVER_FILLING,
    SERVER_FILLED,     /* every page is in, was given back by the guest, or is poisoned */
    SERVER_INCOMPLETE, /* all that can be read is in; the damaged rest stays registered */
    SERVER_RELEASED,   /* unregistered: the guest's memory is its own */
};
enum server_stage server_stage(const struct server *s);
bool server_prefetched(const struct server *s);

/* Something can't be read from the image, for now or for good: another copy of it would help. */
bool server_needs_image(const struct server *s);

/* The next thing that went wrong while serving (a damaged cluster, a stray fault): true and *e,
 * which says what the guest does. Bounded: further ones are counted only. */
bool server_take_error(struct server *s, struct error *e);

/* After SERVER_FILLED: drops the registration, in pieces, still answering.
 * SERVER_RELEASED follows. */
void server_release(struct server *s);

/* What its thread spends its time on; the rest it reads. */
struct serve_stages {
    struct stage_time answering;  /* faults, decoding included */
    struct stage_time installing; /* the workers' jobs; bytes of memory */
    struct stage_time asleep;
};

struct server_stats {
    uint64_t demand_faults;
    struct histogram faults; /* from the last empty read before a fault to its wake */
    struct answer_counts counts;
    bool guest_waits; /* a fault can't be answered, or was not for a while now */
    enum server_stage stage;
    unsigned n_threads;               /* workers */
    const struct serve_stages *serve; /* both valid until server_stop() */
    const struct fill_stages *fill;   /* NULL: no workers */
};
/* Exact once the stage is past SERVER_FILLING or after server_stop(); before, a glance. */
void server_get_stats(const struct server *s, struct server_stats *stats);

/* Ends all threads, closes the userfaultfd and frees. While faults are unanswered the guest goes on
 * waiting only if somebody else holds the userfaultfd. NULL is allowed. */
void server_stop(struct server *s);

#endif
