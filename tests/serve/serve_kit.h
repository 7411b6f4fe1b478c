/*
 * serve_kit.h - a restore without a VMM: a process of the test's own stands in for it, with memory
 * of every kind, and an image whose every page is known.
 *
 * The process reads and checks its own memory; what it finds stands in a board that it shares with
 * the test.
 */
#ifndef VMSNAP_TESTS_SERVE_KIT_H
#define VMSNAP_TESTS_SERVE_KIT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/image/reader.h"
#include "common/target/target.h"
#include "restore/decode/learn.h"
#include "restore/decode/prefetch.h"
#include "restore/memory/attach.h"
#include "restore/memory/blocks.h"
#include "restore/record.h"
#include "restore/serve/serve.h"
#include "tests/kernel/ktest.h"

enum kit_memory {
    KIT_ANON,
    KIT_ANON_HUGE, /* madvise(MADV_HUGEPAGE) */
    KIT_MEMFD,
    KIT_PRIVATE_FILE, /* MAP_PRIVATE of a memfd */
    KIT_HUGETLB,
    KIT_KINDS,
};

/* How the memory is before the restore. */
enum kit_before {
    KIT_FRESH,     /* no page present */
    KIT_FILLED,    /* all present, other content: prealloc=on */
    KIT_LOCKED,    /* the same, locked: mem-lock=on */
    KIT_UNMAPPED,  /* as filled, and unmapped: shared memory is in its file only */
    KIT_SPRINKLED, /* every seventh page present, other content */
};

struct kit_block {
    enum kit_memory kind;
    uint64_t n_pages;
    atomic_ullong hva; /* set by the process; 0: this host has no such memory */
};

#define KIT_BLOCKS_MAX 6
#define KIT_DISCARD_PAGES 4096u /* of each block, with KIT_DISCARD */
#define KIT_GIVEN_UP 1024u      /* pages, with KIT_GIVE_UP */
#define KIT_POISONED_PAGE 21u   /* of block 0, where the kit poisons */

/* What the process does with its memory when told to go. */
enum kit_work {
    KIT_READ,      /* reads every page in random order, then writes and reads back */
    KIT_DISCARD,   /* reads, discards and writes at random; knows what each page must hold */
    KIT_GIVE_UP,   /* discards the first KIT_GIVEN_UP pages of block 0, then reads them */
    KIT_UNMAP,     /* reads, changes and unmaps (MADV_DONTNEED): shared memory keeps its content */
    KIT_TOUCH,     /* reads page `touch_page` of block 0 */
    KIT_TOUCH_ALL, /* reads a byte of each cluster of block 0, every thread its own ones, at random
                    */
    KIT_STROLL,    /* reads every page in order, and pauses at each 16 KiB */
};

struct kit_board {
    struct kit_block blocks[KIT_BLOCKS_MAX];
    uint32_t n_blocks;
    enum kit_before before;
    enum kit_work work;
    char path[64];                     /* not empty: where the file of KIT_MEMFD has a name */
    bool split;                        /* many small mappings instead of one */
    bool poisoned;                     /* page KIT_POISONED_PAGE of block 0 is */
    uint64_t damaged_first, n_damaged; /* pages of block 0 that must give a SIGBUS too */
    uint64_t given_back;               /* page of block 0 that is discarded at first; 0: none */
    unsigned n_threads, n_rounds;
    uint64_t touch_page;

    atomic_bool ready, go, quit;
    atomic_uint finished; /* threads */
    atomic_ullong pages_read;
    atomic_ullong wrong;     /* pages that held anything but what they should */
    atomic_ullong came_back; /* of those: a discarded page that held the image's content */
    atomic_ullong discards, bus_errors;
};

struct kit {
    struct kit_board *board; /* shared with the process */
    pid_t pid;
    char image_path[64];
    struct target target;
    struct image *img;
    struct blocks blocks;
    struct record record;
    struct page_state state; /* in the record */
    struct attach attach;
    struct prefetch prefetch;
    struct learn learn; /* begun by the test where it is wanted, before kit_serve() */
    uint64_t bytes_per_s;
    bool goes_early; /* kit_serve() lets the process work before it fills */
    bool fills_late; /* the test calls server_begin_fill() */
    struct server *server;
    bool poison_damage;            /* for kit_serve() */
    enum cluster_state left_state; /* of cluster left_cluster, as if a server before had left it */
    uint64_t left_cluster;
    unsigned crowd; /* that, too */
};

/* What a page of the image holds; zeros for some, and for whole clusters. */
void kit_page(uint32_t block, uint64_t page, void *out);

/* Makes the process and the image. The board's first part is filled in. `hot`: the image has a hot
 * list of every third cluster. False (said why): the test fails. */
bool kit_open(struct kit *k, struct kit_board *board, bool hot);

/* Attaches, serves. `prefetch_hot` and `fill` as server_config. */
bool kit_serve(struct kit *k, bool prefetch_hot, bool fill);

/* Lets the process work, and waits for all its threads: false after 30 s. */
bool kit_run(struct kit *k);
void kit_go(struct kit *k);
bool kit_wait_finished(struct kit *k, int timeout_ms);

/* Waits for a stage of the server. */
bool kit_wait_stage(struct kit *k, enum server_stage stage);

/* Ends process and server, removes the image. */
void kit_close(struct kit *k);

/* ktest_main(), where there are root and userfaultfd. */
int kit_main(int argc, char **argv, const struct ktest_case *cases, size_t n);

#endif
