/*
 * guest.c - the guest's work, compiled twice: into the blob that KVM vCPUs run (GUEST_BLOB), and as
 * plain functions for threads. Freestanding; all it knows comes from its state and its mailbox.
 *
 * One step: choose a page of the share, look at it (timed: a read fault, at a restore), check that
 * it is as it was left, note in the state that it is being written, write (timed: a write fault,
 * at a snapshot), add the difference to the sum. The order of the stores is the order in which a
 * stop at any instruction finds them: one processor sees its own stores in order, and the compiler
 * is held by barriers.
 */
#include "guest.h"

#define barrier() __asm__ volatile("" ::: "memory")

static inline void ring(struct guest_mailbox *mb, uint64_t call)
{
#ifdef GUEST_BLOB
    (void)mb;
    *(volatile uint64_t *)GUEST_DOORBELL_GPA = call;
#else
    guest_doorbell(mb, call);
#endif
}

static inline unsigned bucket_of(uint64_t ticks)
{
    if (ticks < 1u << GUEST_SUB_BITS)
        return (unsigned)ticks;
    unsigned exponent = 63u - (unsigned)__builtin_clzll(ticks);
    unsigned sub = (unsigned)(ticks >> (exponent - GUEST_SUB_BITS)) & ((1u << GUEST_SUB_BITS) - 1);
    return ((exponent - GUEST_SUB_BITS + 1) << GUEST_SUB_BITS) + sub;
}

static void record(struct guest_histogram *h, uint64_t ticks)
{
    h->count++;
    h->buckets[bucket_of(ticks)]++;
    if (ticks > h->max_ticks)
        h->max_ticks = ticks;
}

/* The slice of time that `now` lies in; starts those that have begun since. */
static struct guest_slot *slot_of(struct guest_mailbox *mb, uint64_t now)
{
    while ((int64_t)(now - mb->slot_start) >= (int64_t)mb->slot_ticks) {
        struct guest_slot *next = &mb->slots[(mb->slot_number + 1) % GUEST_SLOTS];
        next->writes = next->max_write_ticks = next->max_gap_ticks = 0;
        next->number = ++mb->slot_number;
        mb->slot_start += mb->slot_ticks;
    }
    return &mb->slots[mb->slot_number % GUEST_SLOTS];
}

/* When a step took place: before and after the first read, before and after the first write. */
struct times {
    uint64_t read, was_read, write, was_written;
};

/* When write number mb->writes was done. */
static void log_write(struct guest_mailbox *mb, uint64_t now)
{
    uint64_t at = mb->writes / GUEST_LOG_STRIDE - 1;
    if (mb->writes <= GUEST_LOGGED)
        mb->first_tsc[mb->writes - 1] = now;
    if (mb->writes % GUEST_LOG_STRIDE == 0 && at < GUEST_LOGGED)
        mb->strided_tsc[at] = now;
}

/*
 * `whole`: the VM was not paused since the step began. Else (and after a restore the times before
 * and after are not even of one clock) only the gap is told, which the pause is part of.
 */
static void measure(struct guest_mailbox *mb, struct times *t, int whole)
{
    if (!whole)
        t->was_written = guest_tsc();
    uint64_t latency = t->was_written - t->write, gap = t->was_written - mb->last_tsc;
    struct guest_slot *slot = slot_of(mb, t->was_written);
    if (whole) {
        record(&mb->read, t->was_read - t->read);
        record(&mb->write, latency);
        if (latency > slot->max_write_ticks)
            slot->max_write_ticks = latency;
    }
    if (gap > slot->max_gap_ticks)
        slot->max_gap_ticks = gap;
    slot->writes++;
    mb->writes++;
    log_write(mb, t->was_written);
    mb->last_tsc = t->was_written;
}

/* Is the page as its generation says? A page is unwritten only where nothing was populated. */
static int page_is_right(const struct guest_state *s, const uint64_t *page, uint64_t number)
{
    const struct guest_page *start = (const struct guest_page *)page;
    uint64_t check = guest_check(number, start->generation);
    if (!check && number < s->populated_pages)
        return 0;
    uint64_t bad = (start->number ^ (check ? number : 0)) | (start->check ^ check);
    for (unsigned i = 0; i < GUEST_MARKS; i++)
        bad |= page[guest_mark_word(i)] ^ guest_mark(check, i);
    return bad == 0;
}

static void report_wrong(struct guest_mailbox *mb, const uint64_t *page, uint64_t number)
{
    const struct guest_page *start = (const struct guest_page *)page;
    if (mb->wrong++)
        return;
    mb->wrong_page = number;
    mb->wrong_number = start->number;
    mb->wrong_generation = start->generation;
    mb->wrong_check = start->check;
}

/* Which page comes next. Stores nothing: the first store of a step is one that is timed. */
static inline uint64_t choose(const struct guest_state *s, uint64_t generator)
{
    if (s->pattern == GUEST_SEQUENTIAL)
        return s->first_page + s->position;
    return s->first_page + (((generator >> 32) * s->work_pages) >> 32);
}

static inline uint64_t *page_at(const struct guest_mailbox *mb, uint64_t number)
{
    const struct guest_region *r = mb->regions;
    while (number >= r->end_page)
        r++;
    return (uint64_t *)(uintptr_t)(r->base + number * GUEST_PAGE_BYTES);
}

static inline uint64_t next_random(uint64_t x)
{
    x ^= x << 13; /* xorshift64 */
    x ^= x >> 7;
    return x ^ x << 17;
}

static void step(struct guest_mailbox *mb, struct guest_state *s)
{
    uint64_t epoch = *(volatile uint64_t *)&mb->epoch;
    uint64_t generator = next_random(s->generator);
    uint64_t number = choose(s, generator);
    uint64_t *page = page_at(mb, number);
    volatile struct guest_page *start = (volatile struct guest_page *)page;
    struct times t = {.read = guest_tsc()};
    uint64_t old = start->generation, new = old + 1;
    t.was_read = guest_tsc();
    if (!page_is_right(s, page, number))
        report_wrong(mb, page, number);

    uint64_t check = guest_check(number, new);
    t.write = guest_tsc();
    s->pending_old = old;
    s->pending_new = new;
    barrier();
    s->pending = number;
    barrier();
    start->number = number;
    t.was_written = guest_tsc();
    start->generation = new;
    start->check = check;
    for (unsigned i = 0; i < GUEST_MARKS; i++)
        page[guest_mark_word(i)] = guest_mark(check, i);
    barrier();
    s->sum += check - guest_check(number, old);
    barrier();
    s->pending = 0;
    s->generator = generator;
    s->position = s->position + 1 < s->work_pages ? s->position + 1 : 0;
    s->steps++;
    measure(mb, &t, *(volatile uint64_t *)&mb->epoch == epoch);
}

/* Takes back the page that was discarded first. 0: there is none. */
static int reuse(struct guest_mailbox *mb, struct guest_state *s)
{
    uint64_t k = s->reused, bad = 0;
    if (k == *(volatile uint64_t *)&s->discarded)
        return 0;
    uint64_t number = s->balloon_first + k % s->balloon_pages, check = guest_check(number, k + 2);
    volatile uint64_t *page = page_at(mb, number);
    for (unsigned i = 0; i < GUEST_PAGE_WORDS; i++)
        bad |= page[i];
    if (bad)
        report_wrong(mb, (const uint64_t *)page, number);
    page[0] = number;
    page[1] = k + 2;
    page[2] = check;
    for (unsigned i = 0; i < GUEST_MARKS; i++)
        page[guest_mark_word(i)] = guest_mark(check, i);
    barrier();
    *(volatile uint64_t *)&s->reused = k + 1;
    return 1;
}

/* Waits a while if the next write is not due yet. 0: it is. */
static int wait_for_turn(struct guest_mailbox *mb, const struct guest_state *s)
{
    uint64_t now;
    if (s->pattern == GUEST_IDLE) {
        mb->wake_tsc = guest_tsc() + mb->idle_ticks;
    } else if (mb->interval_ticks == 0) {
        return 0;
    } else if ((int64_t)(mb->next_tsc - (now = guest_tsc())) <= (int64_t)mb->burst_ticks) {
        /* What was missed is not made up for. */
        if ((int64_t)(now - mb->next_tsc) > (int64_t)mb->burst_ticks)
            mb->next_tsc = now;
        mb->next_tsc += mb->interval_ticks;
        return 0;
    } else {
        mb->wake_tsc = mb->next_tsc;
    }
    ring(mb, GUEST_CALL_WAIT);
    mb->last_tsc = guest_tsc();
    return 1;
}

#ifdef GUEST_BLOB
__attribute__((section(".entry")))
#endif
void guest_main(struct guest_mailbox *mb, struct guest_state *state, uint64_t mode)
{
    while (!mb->leave) {
        if (mode == GUEST_CALIBRATE) {
            mb->hello_tsc = guest_tsc();
            ring(mb, GUEST_CALL_HELLO);
        } else {
            while (!mb->leave && reuse(mb, state))
                ;
            if (!wait_for_turn(mb, state))
                step(mb, state);
        }
    }
}
