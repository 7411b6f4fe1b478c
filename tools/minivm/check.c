/* check.c - see check.h. RAM is cut into pieces for as many threads as there are CPUs; each piece
 * lies in one share and one region, and what spans pieces (sums, neighbours) is put together after.
 */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PIECE_PAGES 4096u
#define MAX_CHECKERS 8u
#define PAGEMAP_THERE (3ull << 62) /* present or swapped */

struct piece {
    const struct guest_state *s;       /* whose share; NULL: nobody's */
    const struct guest_state *balloon; /* NULL: it is no part of it */
    uint64_t first, end;
    uint64_t written, wrong, first_wrong, sum;
    /* Generations, the page that is being written left out; `any`: there are some. */
    bool any;
    uint64_t first_generation, last_generation, steps_down, wrong_steps;
};

struct job {
    const struct memory *m;
    bool absent_is_zero;
    int pagemap;
    uint64_t populated;
    struct piece *pieces;
    size_t n_pieces, next; /* next: taken by atomic addition */
};

/* One bit of `there` per page of the piece. */
static void look_at_file(const struct job *j, const struct piece *p, bool *there)
{
    uint64_t at = p->first * GUEST_PAGE_BYTES, end = p->end * GUEST_PAGE_BYTES;
    while (at < end) {
        off_t data = lseek(j->m->fd, (off_t)at, SEEK_DATA);
        if (data < 0 || (uint64_t)data >= end)
            return;
        off_t hole = lseek(j->m->fd, data, SEEK_HOLE);
        uint64_t stop = hole < 0 || (uint64_t)hole > end ? end : (uint64_t)hole;
        uint64_t from = (uint64_t)data > at ? (uint64_t)data : at;
        for (uint64_t i = from / GUEST_PAGE_BYTES; i * GUEST_PAGE_BYTES < stop; i++)
            there[i - p->first] = true;
        at = stop;
    }
}

static void look_at_pagemap(const struct job *j, const struct piece *p, bool *there)
{
    static _Thread_local uint64_t entries[PIECE_PAGES];
    uint64_t page = (uintptr_t)memory_page(j->m, p->first) / GUEST_PAGE_BYTES;
    uint64_t n = p->end - p->first;
    ssize_t got = pread(j->pagemap, entries, n * 8, (off_t)(page * 8));
    for (uint64_t i = 0; i < n; i++) /* what can't be known is there */
        there[i] = (uint64_t)(got < 0 ? 0 : got) / 8 <= i || (entries[i] & PAGEMAP_THERE);
}

static void look(const struct job *j, const struct piece *p, bool *there)
{
    memset(there, !j->absent_is_zero, PIECE_PAGES);
    if (!j->absent_is_zero)
        return;
    if (j->m->fd >= 0)
        look_at_file(j, p, there);
    else
        look_at_pagemap(j, p, there);
}

/* The page as it is at a generation. */
static void expect(const struct job *j, uint64_t *page, uint64_t number, uint64_t generation)
{
    uint64_t check = guest_check(number, generation);
    struct guest_page start = {generation ? number : 0, generation, check};
    if (number < j->populated)
        memory_content(number, page);
    else
        memset(page, 0, GUEST_PAGE_BYTES);
    for (unsigned i = 0; i < GUEST_MARKS; i++)
        page[guest_mark_word(i)] = guest_mark(check, i);
    memcpy(page, &start, sizeof(start));
}

/* A page that is being written: each word is of before or of after. */
static bool is_between(const struct job *j, const struct piece *p, const uint64_t *page)
{
    uint64_t before[GUEST_PAGE_WORDS], after[GUEST_PAGE_WORDS];
    expect(j, before, p->s->pending, p->s->pending_old);
    expect(j, after, p->s->pending, p->s->pending_new);
    for (unsigned i = 0; i < GUEST_PAGE_WORDS; i++)
        if (page[i] != before[i] && page[i] != after[i])
            return false;
    return true;
}

static void note_generation(struct piece *p, uint64_t generation)
{
    if (!p->any)
        p->first_generation = generation;
    else if (p->last_generation == generation + 1)
        p->steps_down++;
    else if (p->last_generation != generation)
        p->wrong_steps++;
    p->any = true;
    p->last_generation = generation;
}

/*
 * A page of the balloon: as populated until it is discarded, then zero until it is reused, and then
 * of that generation; the one that is being reused is between both. `page`: NULL if it is absent.
 */
static bool is_right_in_balloon(const struct job *j, const struct piece *p, uint64_t number,
                                const uint64_t *page)
{
    static const uint64_t zeros[GUEST_PAGE_WORDS];
    const struct guest_state *s = p->balloon;
    uint64_t right[GUEST_PAGE_WORDS] = {0}, at = number - s->balloon_first, k = 0;
    bool discarded = at < s->discarded;
    if (discarded) /* its last discard */
        k = at + (s->discarded - 1 - at) / s->balloon_pages * s->balloon_pages;
    if (!page)
        page = zeros;
    if (!discarded) {
        expect(j, right, number, number < j->populated ? 1 : 0);
    } else if (k <= s->reused) {
        const struct guest_page start = {number, k + 2, guest_check(number, k + 2)};
        for (unsigned i = 0; i < GUEST_MARKS; i++)
            right[guest_mark_word(i)] = guest_mark(start.check, i);
        memcpy(right, &start, sizeof(start));
    }
    bool between = discarded && k == s->reused;
    for (unsigned i = 0; i < GUEST_PAGE_WORDS; i++)
        if (page[i] != right[i] && !(between && page[i] == 0))
            return false;
    return true;
}

/* A page that is not there was never written. */
static bool is_right(const struct job *j, const struct piece *p, uint64_t number,
                     const uint64_t *page)
{
    uint64_t right[GUEST_PAGE_WORDS];
    if (p->balloon)
        return is_right_in_balloon(j, p, number, page);
    if (!page)
        return number >= j->populated;
    if (p->s && p->s->pending == number)
        return is_between(j, p, page);
    uint64_t generation = ((const struct guest_page *)(const void *)page)->generation;
    expect(j, right, number, generation);
    return memcmp(page, right, sizeof(right)) == 0 &&
           (generation ? p->s != NULL : number >= j->populated);
}

/* `page`: NULL if it is not there. */
static void check_page(const struct job *j, struct piece *p, uint64_t number, const uint64_t *page)
{
    const struct guest_page *start = (const struct guest_page *)(const void *)page;
    uint64_t generation = start ? start->generation : 0;
    if (!p->s || p->s->pending != number) {
        p->sum += guest_check(number, generation);
        note_generation(p, generation);
    }
    p->written += generation != 0;
    if (!is_right(j, p, number, page) && p->wrong++ == 0)
        p->first_wrong = number;
}

static void *check_pieces(void *arg)
{
    struct job *j = arg;
    bool there[PIECE_PAGES];
    for (;;) {
        size_t i = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED);
        if (i >= j->n_pieces)
            return NULL;
        struct piece *p = &j->pieces[i];
        look(j, p, there);
        for (uint64_t number = p->first; number < p->end; number++) {
            const void *page = memory_page(j->m, number);
            check_page(j, p, number, there[number - p->first] ? page : NULL);
        }
    }
}

/* `s`: whose share, or NULL; `balloon`: whose balloon, or NULL. */
static void add_pieces(struct job *j, const struct guest_state *s,
                       const struct guest_state *balloon, uint64_t first, uint64_t end)
{
    for (uint64_t stop; first < end; first = stop) {
        uint64_t room = memory_pages_on(j->m, first);
        stop = first + (room < PIECE_PAGES ? room : PIECE_PAGES);
        stop = stop < end ? stop : end;
        j->pieces[j->n_pieces++] =
            (struct piece){.s = s, .balloon = balloon, .first = first, .end = stop};
    }
}

/* The shares follow each other; behind the last one nobody writes. -EBADMSG: the state pages say
 * something else. */
static int cut(struct job *j, unsigned cpus)
{
    uint64_t pages = j->m->bytes / GUEST_PAGE_BYTES, end = cpus;
    j->pieces = calloc(pages / PIECE_PAGES + 2 * cpus + 3 + j->m->n_regions, sizeof(*j->pieces));
    if (!j->pieces)
        return -ENOMEM;
    for (unsigned i = 0; i < cpus; i++) {
        const struct guest_state *s = memory_state(j->m, i);
        if (!memory_state_is_sound(j->m, s, i, cpus) || s->first_page != end)
            return -EBADMSG;
        add_pieces(j, s, NULL, end, end + s->n_pages);
        end += s->n_pages;
    }
    const struct guest_state *first = memory_state(j->m, 0);
    if (first->balloon_pages && first->balloon_first != end)
        return -EBADMSG;
    add_pieces(j, NULL, first, end, end + first->balloon_pages);
    add_pieces(j, NULL, NULL, end + first->balloon_pages, pages);
    j->populated = first->populated_pages;
    return 0;
}

/* Puts the pieces of one share together, beginning with piece `i`. The piece behind it. */
static size_t judge_share(const struct job *j, size_t i, struct check_result *r)
{
    const struct guest_state *s = j->pieces[i].s;
    struct piece all = {.s = s};
    uint64_t before = guest_check(s->pending, s->pending ? s->pending_old : 0);
    uint64_t after = guest_check(s->pending, s->pending ? s->pending_new : 0);
    for (; i < j->n_pieces && j->pieces[i].s == s; i++) {
        const struct piece *p = &j->pieces[i];
        all.sum += p->sum;
        all.steps_down += p->steps_down;
        all.wrong_steps += p->wrong_steps;
        if (!p->any)
            continue;
        note_generation(&all, p->first_generation);
        all.last_generation = p->last_generation;
    }
    r->stale_shares += all.sum + before != s->sum && all.sum + after != s->sum;
    if (s->pattern == GUEST_SEQUENTIAL)
        r->wrong_steps += all.wrong_steps + (all.steps_down > 1 ? all.steps_down - 1 : 0);
    return i;
}

static struct check_result judge(const struct job *j)
{
    struct check_result r = {0};
    for (size_t i = j->n_pieces; i-- > 0;) { /* backwards: the first wrong page is met last */
        const struct piece *p = &j->pieces[i];
        r.pages += p->end - p->first;
        r.written_pages += p->written;
        r.wrong_pages += p->wrong;
        if (p->wrong)
            r.first_wrong = p->first_wrong;
    }
    for (size_t i = 0; i < j->n_pieces;)
        i = j->pieces[i].s ? judge_share(j, i, &r) : i + 1;
    return r;
}

/* Not by this thread, which goes before all others (main.c), unless there is no other. */
static void run(struct job *j)
{
    pthread_t threads[MAX_CHECKERS];
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned n = 0;
    while (n < MAX_CHECKERS && (long)n < online &&
           pthread_create(&threads[n], NULL, check_pieces, j) == 0)
        n++;
    if (n == 0)
        check_pieces(j);
    while (n > 0)
        pthread_join(threads[--n], NULL);
}

int check_memory(const struct memory *m, unsigned cpus, bool absent_is_zero,
                 struct check_result *result)
{
    struct job j = {.m = m, .absent_is_zero = absent_is_zero};
    j.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (j.pagemap < 0)
        return -errno;
    int r = cut(&j, cpus);
    if (r == 0) {
        run(&j);
        *result = judge(&j);
    }
    free(j.pieces);
    close(j.pagemap);
    return r;
}
