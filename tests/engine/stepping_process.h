/*
 * stepping_process.h - a process that plays the guest: one thread per block writes its pages in
 * order, step after step, each page wholly; others read all over, holes too. It can be paused, and
 * then says exactly how far each writer is, so that what every byte must have been at that instant
 * is known.
 *
 * Page p of a block at step s holds the number s at three places (begin, middle, end), if p is
 * below the limit of that step; the limit grows, so that holes are filled while it runs. The last
 * pages of a block are not written by its writer; stepping_scrap() fills and discards them.
 */
#ifndef VMSNAP_TESTS_STEPPING_PROCESS_H
#define VMSNAP_TESTS_STEPPING_PROCESS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define STEPPING_MAX_BLOCKS 8u

enum stepping_kind {
    STEPPING_ANON,
    STEPPING_ANON_HUGE,    /* MADV_HUGEPAGE */
    STEPPING_MEMFD,        /* shared */
    STEPPING_PRIVATE_FILE, /* private mapping of a memfd that holds data */
    STEPPING_HUGETLB,      /* anonymous, 2 MiB pages */
};

struct stepping_block {
    enum stepping_kind kind;
    uint64_t n_pages;
    bool random;         /* written all over, in an order of its own; n_pages is a power of two */
    uint64_t hva;        /* by the process; 0: this kind can't be had here */
    uint64_t step, next; /* of the writer, when paused: pages below `next` have been written in
                            `step` */
    uint64_t scrap[2];   /* what the two halves of its scrap pages hold */
    atomic_bool parked;
};

/* Shared between the process and the test. */
struct stepping_board {
    uint32_t n_blocks;
    struct stepping_block blocks[STEPPING_MAX_BLOCKS];
    atomic_bool ready;
    atomic_bool pause;   /* asked for by the test */
    atomic_bool discard; /* asked for: MADV_DONTNEED over the first block, from that page on */
    atomic_uint_fast64_t discard_from;
    atomic_bool discarded;
    atomic_int scrap;           /* asked for: an enum stepping_scrap; 0 once it is done */
    atomic_bool poison;         /* at the start: the last 3 pages of block 0 are poisoned */
    atomic_bool noise;          /* at the start: what is written from the first step on is filled
                                   with what does not compress */
    atomic_uint_fast64_t wrong; /* pages that a reader found inconsistent */
    atomic_uint_fast64_t written;
    /* By a test that looks at the calls of its worker: the longest ranges given to a userfaultfd,
       while the process ran and while it was paused. */
    atomic_uint_fast64_t longest_running, longest_paused;
};

#define STEPPING_SCRAP_PAGES 64u

enum stepping_scrap {
    STEPPING_SCRAP_FILL = 1, /* all scrap pages are written */
    STEPPING_SCRAP_DISCARD,  /* all are discarded, then the first half written anew */
};

/* Lets the process do that in all blocks but those of huge pages, and waits. */
void stepping_scrap(struct stepping_board *board, enum stepping_scrap what);

/* Starts it, waits until it has memory and works. `board` has kinds and sizes filled in. */
pid_t stepping_start(struct stepping_board *board);
struct stepping_board *stepping_board_new(void); /* shared memory */
void stepping_stop(pid_t pid);

/* Pauses all writers and waits; lets them go on. False: not within a second. */
bool stepping_pause(struct stepping_board *board);
void stepping_resume(struct stepping_board *board);

/* What page p of the block holds at (step, next): a step number, 0 for a hole. */
uint64_t stepping_expected(const struct stepping_block *b, uint64_t p);

/* True if the 4096 bytes are a page that holds `value`. */
bool stepping_page_is(const void *page, uint64_t value);

#endif
