/*
 * guest.h - what the guest and the VMM have in common: the layout of a written page, of the state
 * that belongs to the guest (in its RAM), and of the mailbox that does not.
 *
 * RAM is an array of pages. Page k < cpus holds the state of vCPU k and, under KVM, its stack. The
 * rest is divided among the vCPUs; each writes in its own share only. All that decides what a vCPU
 * does next lies in RAM or in its registers, so a copy of both goes on exactly where the original
 * was. The mailbox is a memory of its own, which no snapshot holds and no copy-on-write divides:
 * measuring makes no faults, and what was measured is not taken back by a restore.
 */
#ifndef MINIVM_GUEST_H
#define MINIVM_GUEST_H

#include <stdint.h>

#define GUEST_PAGE_BYTES 4096u
#define GUEST_PAGE_WORDS (GUEST_PAGE_BYTES / 8)
#define GUEST_MAX_CPUS 64u
#define GUEST_MAX_REGIONS 8u

/* Guest-physical, and by the identity map virtual, addresses. */
#define GUEST_MACHINE_GPA 0x200000ull    /* page tables, code, mailboxes: a memory slot */
#define GUEST_MAP_OFFSET 0x0ull          /* PML4, PDPT, page directories */
#define GUEST_MAX_DIRECTORIES 256u       /* 1 GiB each */
#define GUEST_CODE_OFFSET 0x110000ull    /* guest.ld has the sum with GUEST_MACHINE_GPA */
#define GUEST_CODE_BYTES 0x10000ull      /* code; the calibration's stack at its end */
#define GUEST_MAILBOX_OFFSET 0x200000ull /* one after the other */
#define GUEST_MAILBOX_BYTES 0x100000ull  /* each */
#define GUEST_DOORBELL_GPA 0xd0000000ull /* no memory: a write leaves KVM_RUN */
#define GUEST_RAM_GPA 0x100000000ull
#define GUEST_HOLE_BYTES 0x10000000ull /* guest-physical, between two regions of RAM */
#define GUEST_MAX_RAM_BYTES ((GUEST_MAX_DIRECTORIES - 4ull) << 30)

/* The start of each written page; the rest of it is guest_mark() on a stride and content. */
struct guest_page {
    uint64_t number;     /* of the page in RAM */
    uint64_t generation; /* how often it was written; 0: never, and then all of the page is zero */
    uint64_t check;      /* guest_check() of both */
};

#define GUEST_MARKS 4u

enum guest_pattern { GUEST_IDLE, GUEST_RANDOM, GUEST_SEQUENTIAL };

#define GUEST_STATE_MAGIC 0x3145544154534d56ull /* "VMSTATE1" */

/* At the start of page `vcpu` of RAM. */
struct guest_state {
    uint64_t magic;
    uint32_t vcpu, cpus;
    uint32_t pattern; /* enum guest_pattern */
    uint32_t unused;
    uint64_t ram_pages, populated_pages; /* populated: from page 0 on */
    uint64_t first_page, n_pages;        /* the share of this vCPU */
    uint64_t work_pages;                 /* what it writes: from first_page on */
    uint64_t generator, position;
    uint64_t steps; /* pages written */
    /*
     * The sum of guest_check() over all pages of the share but those of generation 0: from it a
     * page that is old, though right in itself, is found. While `pending` is not 0, page `pending`
     * is being written, and `sum` is of before or of after.
     */
    uint64_t sum;
    uint64_t pending, pending_old, pending_new;
    /*
     * The balloon, of vCPU 0 alone: a ring of pages behind all shares. Discard k, counted from 0,
     * was of page k % balloon_pages of it. The VMM has discarded `discarded` pages; the guest has
     * read the zeros of the first `reused` of these and written each: its generation is k + 2, all
     * of it but start and marks is zero. The VMM is never more than one round ahead.
     */
    uint64_t balloon_first, balloon_pages, discarded, reused;
};

/* Latencies in ticks of the TSC: below 32 each value has its own bucket, above that a bucket is
 * 1/32 of its power of two wide. */
#define GUEST_SUB_BITS 5u
#define GUEST_BUCKETS (64u << GUEST_SUB_BITS)

struct guest_histogram {
    uint64_t count, max_ticks;
    uint64_t buckets[GUEST_BUCKETS];
};

#define GUEST_SLOTS 16384u

/* What happened in one slice of time; slices are of slot_ticks and count from slot 0. */
struct guest_slot {
    uint64_t number;
    uint64_t writes;
    uint64_t max_write_ticks;
    uint64_t max_gap_ticks;
};

/* Where the guest sees the pages before `end_page` that no region before it has: page p at `base` +
 * p * GUEST_PAGE_BYTES. */
struct guest_region {
    uint64_t end_page, base;
};

/* When each of the first writes was done, and after those every 64th. */
#define GUEST_LOGGED 16384u
#define GUEST_LOG_STRIDE 64u

enum guest_mode { GUEST_CALIBRATE, GUEST_WORK };

/* A value written to the doorbell: what the guest wants. */
enum guest_call { GUEST_CALL_HELLO = 1, GUEST_CALL_WAIT = 2 };

struct guest_mailbox {
    /* Set by the VMM. */
    struct guest_region regions[GUEST_MAX_REGIONS]; /* the last one ends behind every page */
    uint64_t epoch;          /* another one each time the VM goes on, in any VMM */
    uint64_t interval_ticks; /* between two writes; 0: as fast as it can */
    uint64_t burst_ticks;    /* how far it may run ahead of its rate */
    uint64_t idle_ticks;     /* how long an idle guest sleeps at a time */
    uint64_t slot_ticks;
    volatile uint32_t leave; /* threads only: return at the next step */
    uint32_t unused;
    /* Set by the guest. */
    volatile uint64_t hello_tsc; /* at GUEST_CALL_HELLO */
    volatile uint64_t wake_tsc;  /* GUEST_CALL_WAIT: until then, or less */
    /* The VMM sets these before the guest runs first; they are the guest's from then on. */
    uint64_t next_tsc; /* when the next write is due */
    uint64_t last_tsc; /* the end of the last write, or of the wait after it */
    uint64_t slot_start, slot_number;
    uint64_t writes;
    uint64_t wrong; /* pages that were not as they had been written */
    uint64_t wrong_page, wrong_number, wrong_generation, wrong_check; /* the first of them */
    struct guest_histogram write, read;                               /* first touch of a page */
    struct guest_slot slots[GUEST_SLOTS];                             /* a ring */
    uint64_t first_tsc[GUEST_LOGGED];                                 /* of write i + 1 */
    uint64_t strided_tsc[GUEST_LOGGED]; /* of write (i + 1) * GUEST_LOG_STRIDE */
};

_Static_assert(sizeof(struct guest_state) <= 512, "the rest of its page is the stack");
_Static_assert(sizeof(struct guest_mailbox) <= GUEST_MAILBOX_BYTES, "one mailbox");

static inline uint64_t guest_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull; /* splitmix64's finalizer */
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* Never 0 for a page that was written, in practice; 0 for one that was not. */
static inline uint64_t guest_check(uint64_t number, uint64_t generation)
{
    return generation ? guest_mix(number * 0x9e3779b97f4a7c15ull + generation) : 0;
}

/* The words of the page, beside its start, that carry its generation. */
static inline unsigned guest_mark_word(unsigned mark)
{
    return mark + 1 < GUEST_MARKS ? (mark + 1) * (GUEST_PAGE_WORDS / GUEST_MARKS)
                                  : GUEST_PAGE_WORDS - 1;
}

static inline uint64_t guest_mark(uint64_t check, unsigned mark)
{
    return check ? check + mark + 1 : 0;
}

/* The TSC, read after all that stands before it is done. */
static inline uint64_t guest_tsc(void)
{
    uint32_t low, high;
    __asm__ volatile("lfence\n\trdtsc\n\tlfence" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

/*
 * The guest. `state` is its page of RAM. GUEST_CALIBRATE: rings HELLO without end and touches no
 * RAM. GUEST_WORK: works without end, or until mb->leave; may be entered again at any time.
 */
void guest_main(struct guest_mailbox *mb, struct guest_state *state, uint64_t mode);

/* For guest_main() in a thread: what the doorbell is under KVM. */
void guest_doorbell(struct guest_mailbox *mb, uint64_t call);

#endif
