/*
 * record.h - what a successor needs if we die: a small memfd that the VMM keeps open beside the
 * userfaultfd, and that this process has mapped. It tells the image, the blocks, and what has
 * become of each cluster; and it is where the server reads the kernel's messages to.
 *
 * A lock on it (flock, of an opening of our own) keeps a second server out, and ends with us.
 *
 * The VMM can write to it: what a successor reads there is checked, and can at worst spoil that
 * VMM's own memory. The memfd is sealed against a change of its length.
 */
#ifndef VMSNAP_RESTORE_RECORD_H
#define VMSNAP_RESTORE_RECORD_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/restore_record.h"
#include "common/target/target.h"
#include "restore/memory/blocks.h"
#include "restore/memory/page_state.h"
#include "restore/serve/serve.h"

struct record_header;

/* What the restore has done to the guest: its own doing, not what others asked of the VMM since. */
enum record_guest {
    RECORD_GUEST_HELD = 0, /* not yet let run */
    RECORD_GUEST_LET_RUN = 1,
    RECORD_GUEST_LEFT_PAUSED = 2, /* on purpose */
};

struct record {
    struct record_header *header; /* mapped; NULL: there is none */
    uint64_t bytes;
    int lock_fd;               /* -1: none */
    int target_fd;             /* its number in the VMM */
    struct record_facts facts; /* our own copy, checked: the VMM may write to the mapped one */
};

/*
 * Makes the record in the VMM and locks it. `regions` are what blocks_match() will make blocks of.
 * The image's path is made absolute; that of an image without a name (a descriptor's of a removed
 * file) is left empty. Main thread; some hundred microseconds of injection. Exit code
 * 1, or as inject_memfd(). On failure *r is empty; the VMM may be left with an idle memfd.
 */
int record_create(struct record *r, const struct target *t, const struct image *img,
                  const char *image_path, const struct blocks *blocks, int timeout_ms,
                  struct error *e);

/*
 * For a guest whose VMM has made its userfaultfd itself, and whose servers all do the same: the
 * supervisor (which serves nothing) holds the record, *fd is its. Nothing is done to the VMM.
 */
int record_hold(int *fd, const struct target *t, const struct image *img, uint32_t n_blocks,
                struct error *e);

/* A server locks it, as record_lock(), and maps it; a new one (nobody has served by it) it fills
 * in. */
int record_enter(struct record *r, int fd, const struct target *t, const struct image *img,
                 const char *image_path, const struct blocks *blocks, struct error *e);
bool record_is_new(const struct record *r);

/* Once it answers faults: has a thread give the VMM a copy of it, by injection, which is tried
 * until it comes about. */
struct record_leaving;
int record_leave(struct record_leaving **out, const struct target *t, int fd, struct error *e);
/* Its number in the VMM, or -1. There may be more than one: a server that was killed while it left
 * one need not have been too late. */
int record_find_there(const struct record *r, const struct target *t);
/* Ends the trying, and frees: its number in the VMM, or -1. A third of a second at most. */
int record_end_leaving(struct record_leaving *l);

/* From here on a successor may take over: memory is attached, the VMM's copy of the userfaultfd is
 * its descriptor `uffd`. */
void record_ready(struct record *r, int uffd);

/* Whether somebody holds the lock: not us. */
bool record_is_served(const struct record *r);

/* The VMM stays if we die (vmm_let_live()), and this has become of its guest. */
void record_set_guest(struct record *r, enum record_guest guest);

/* All memory is in and nothing is registered any more: a successor has only to clear up. */
void record_released(struct record *r);

/* The VMM's copy of the userfaultfd is closed: its number may soon be another's. */
void record_uffd_closed(struct record *r);
bool record_is_released(const struct record *r);

/*
 * Finds and checks the record of a VMM; its image and blocks can be looked at then, while somebody
 * may still serve it. Exit code 10: it has none, or it makes no sense.
 */
int record_open(struct record *r, const struct target *t, struct error *e);

/*
 * Locks it, and checks it once more; waits three seconds for a server that was killed. With `asks`
 * one that lives is asked for it, and given ten seconds. Exit code 11: somebody serves it; 10: it
 * was never ready, or makes no sense (any more).
 */
int record_lock(struct record *r, const struct target *t, bool asks, struct error *e);

/* The server's side: whether somebody asks for it (he waits), and two answers to that. */
bool record_is_asked_for(const struct record *r);
void record_refuse(struct record *r);
/* Lets go of the lock. True: somebody else has it now. False: who asked did not come, and it is
 * ours again; that takes up to two seconds. */
bool record_hand_over(struct record *r);
/* Afterwards: takes it again if whoever had it is gone before he was through. */
bool record_take_back(struct record *r);

/* Unmaps and lets go of the lock. An empty one is allowed. */
void record_close(struct record *r);

/* ---- what it says; after record_create() or record_open() ---- */

const char *record_image_path(const struct record *r); /* may be empty */
const uint8_t *record_image_id(const struct record *r);
enum record_guest record_get_guest(const struct record *r);
int record_uffd(const struct record *r); /* the descriptor's number in the VMM */

/* The blocks as regions, for blocks_match(): *n of them, the caller's to free(). They have no
 * descriptors. -EBADMSG, -ENOMEM. */
int record_regions(const struct record *r, struct region **out, uint32_t *n);

/* The VMM has made the userfaultfd, and told where which part of the image belongs: *out as
 * blocks_place() takes it, the caller's to free(). */
bool record_is_theirs(const struct record *r);
int record_places(const struct record *r, struct block_place **out, uint32_t *n);

/* Whether the block at `hva` was filled through a window (window.h). */
bool record_has_window(const struct record *r, uint64_t hva);

/* The states of all clusters, in the record. False: the record is not for that many. */
bool record_states(const struct record *r, uint64_t n_clusters, struct page_state *out);

/*
 * SERVER_MESSAGES places for messages. The server lets the kernel write them here, so that an event
 * that was read (which is what lets the guest's thread go on) is not lost with the server: a
 * successor looks at them all once more. Looking at a discard twice does no harm, since what was
 * discarded never comes back.
 */
struct uffd_msg *record_messages(const struct record *r);

#endif
