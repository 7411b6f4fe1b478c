/* Faults that wait: there is always room for the next message. */
#include <criterion/criterion.h>
#include <unistd.h>

#include "restore/serve/waiting.h"

#define PAGE 4096u

static void add(struct waiting *w, unsigned number)
{
    waiting_add(w, &(struct waiting_fault){.hva = (uint64_t)number * PAGE});
}

static void park_all(struct waiting *w)
{
    for (unsigned i = 0; i < w->n; i++)
        w->parked[w->n_parked++] = w->faults[i];
    w->n = 0;
}

Test(waiting, nothing_is_forgotten_while_there_is_room)
{
    static struct waiting w;
    for (unsigned i = 0; i + 1 < WAITING_MAX; i++)
        add(&w, i);
    cr_assert_eq(waiting_make_room(&w), 1);
    cr_assert(!w.forgot);
}

Test(waiting, parked_ones_make_room_and_come_again)
{
    static struct waiting w;
    const struct blocks none = {0};
    for (unsigned i = 0; i + 1 < WAITING_MAX; i++)
        add(&w, i);
    park_all(&w);
    add(&w, WAITING_MAX);
    cr_assert_eq(waiting_room(&w), 0);
    cr_assert_gt(waiting_make_room(&w), 0);
    cr_assert(w.forgot);
    cr_assert_eq(w.n, 1, "one that is not parked is kept");
    cr_assert_gt(w.n_parked, WAITING_MAX / 4, "the demand threads have work");
    waiting_wake_forgotten(&w, -1, &none);
    cr_assert(!w.forgot, "they are woken");
    w.forgot = true;
    waiting_wake_forgotten(&w, -1, &none);
    cr_assert(w.forgot, "but not all the time");
    usleep(100000);
    waiting_wake_forgotten(&w, -1, &none);
    cr_assert(!w.forgot);
}

Test(waiting, there_is_room_even_if_none_is_parked)
{
    static struct waiting w;
    for (unsigned i = 0; i < WAITING_MAX; i++)
        add(&w, i);
    cr_assert_gt(waiting_make_room(&w), 0);
    cr_assert(w.forgot);
    cr_assert_eq(w.faults[0].hva, 0, "who came first is kept");
}

Test(waiting, who_waits_for_something_else_stays_parked)
{
    static struct waiting w;
    for (unsigned i = 0; i < 12; i++)
        add(&w, i);
    park_all(&w);
    w.parked[11].lacks_place = true;
    waiting_unpark(&w, 4 * PAGE, 4 * PAGE);
    cr_assert_eq(w.n, 5);
    cr_assert_eq(w.n_parked, 7);
    cr_assert(waiting_is_parked(&w, 3 * PAGE, PAGE));
    cr_assert_not(waiting_is_parked(&w, 4 * PAGE, 4 * PAGE));
    cr_assert(waiting_is_parked(&w, 8 * PAGE, PAGE));
    cr_assert_not(waiting_is_parked(&w, 11 * PAGE, PAGE), "a place may be free for it");
}

Test(waiting, what_has_no_room_is_forgotten_and_comes_again)
{
    static struct waiting w;
    for (unsigned i = 0; i < 4; i++)
        add(&w, i);
    park_all(&w);
    waiting_forget(&w, 8 * PAGE, PAGE);
    cr_assert_not(w.forgot, "nobody waits there");
    waiting_forget(&w, PAGE, 2 * PAGE);
    cr_assert(w.forgot);
    cr_assert_eq(w.n_parked, 2);
}

Test(waiting, one_that_is_parked_is_not_kept_twice)
{
    static struct waiting w;
    add(&w, 5);
    park_all(&w);
    add(&w, 5);
    add(&w, 6);
    cr_assert_eq(w.n, 2);
    cr_assert_eq(w.n_parked, 0);
}
