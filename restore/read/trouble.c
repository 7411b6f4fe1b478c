#include "restore/read/trouble.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void trouble_init(struct trouble_list *t, int event_fd)
{
    *t = (struct trouble_list){.event_fd = event_fd};
    pthread_mutex_init(&t->lock, NULL);
}

void trouble_free(struct trouble_list *t)
{
    pthread_mutex_destroy(&t->lock);
}

/* Where there is no room for it, the word that the guest waits takes the newest place: it must be
 * the last that the user hears. NULL: there is none. */
static struct error *find_place(struct trouble_list *t, const struct error *e)
{
    if (t->count < TROUBLE_MAX)
        return &t->items[(t->first + t->count++) % TROUBLE_MAX];
    t->dropped++;
    struct error *newest = &t->items[(t->first + TROUBLE_MAX - 1) % TROUBLE_MAX];
    return e->guest == GUEST_WAITING && newest->guest != GUEST_WAITING ? newest : NULL;
}

static void add(struct trouble_list *t, const struct error *e)
{
    struct error *place = find_place(t, e);
    if (!place)
        return;
    *place = *e;
    uint64_t one = 1;
    ssize_t n = write(t->event_fd, &one, sizeof(one));
    (void)n; /* full: readable already */
}

void trouble_add(struct trouble_list *t, const struct error *e)
{
    pthread_mutex_lock(&t->lock);
    add(t, e);
    pthread_mutex_unlock(&t->lock);
}

void trouble_add_once(struct trouble_list *t, const struct error *e, unsigned kind)
{
    assert(kind < 64);
    pthread_mutex_lock(&t->lock);
    if (!(t->said >> kind & 1)) {
        t->said |= 1ull << kind;
        add(t, e);
    }
    pthread_mutex_unlock(&t->lock);
}

bool trouble_take(struct trouble_list *t, struct error *e)
{
    pthread_mutex_lock(&t->lock);
    bool any = t->count > 0;
    if (any) {
        *e = t->items[t->first];
        t->first = (t->first + 1) % TROUBLE_MAX;
        t->count--;
        if (t->count == 0 && t->dropped > 0) {
            size_t len = strlen(e->message); /* most have a hint of their own */
            snprintf(e->message + len, sizeof(e->message) - len, " (and %" PRIu64 " more errors)",
                     t->dropped);
            t->dropped = 0;
        }
    }
    pthread_mutex_unlock(&t->lock);
    return any;
}
