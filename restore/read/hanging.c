#include "restore/read/hanging.h"

void hanging_init(struct hanging *h)
{
    h->n = 0;
    pthread_mutex_init(&h->lock, NULL);
}

void hanging_free(struct hanging *h)
{
    int rc = 0;
    for (unsigned i = 0; i < h->n; i++)
        reader_kill(&h->items[i].reader);
    for (unsigned i = 0; i < h->n; i++) /* those that can end do that together */
        rc = reader_end(&h->items[i].reader, rc ? 0 : READER_GRACE_MS);
    h->n = 0;
    pthread_mutex_destroy(&h->lock);
}

bool hanging_leave(struct hanging *h, const struct reading *r)
{
    pthread_mutex_lock(&h->lock);
    bool room = h->n < HANGING_MAX;
    if (room)
        h->items[h->n++] = *r;
    pthread_mutex_unlock(&h->lock);
    return room;
}

bool hanging_take(struct hanging *h, uint64_t cluster, struct reading *r)
{
    bool found = false;
    pthread_mutex_lock(&h->lock);
    for (unsigned i = 0; i < h->n && !found; i++) {
        found = h->items[i].cluster == cluster;
        if (found) {
            *r = h->items[i];
            h->items[i] = h->items[--h->n];
        }
    }
    pthread_mutex_unlock(&h->lock);
    return found;
}

bool hanging_any(struct hanging *h)
{
    pthread_mutex_lock(&h->lock);
    bool any = h->n > 0;
    pthread_mutex_unlock(&h->lock);
    return any;
}
