/*
 * append.c - the appenders' side of a sink.
 *
 * An append is given its place in the current buffer under a lock and copies after it: whoever is
 * preempted in its copy, or by the I/O thread that it wakes, holds nobody up. A buffer that is full
 * is closed, which is when its place in the order of writes is fixed; it is written once the last
 * copy into it is done.
 */
#include <errno.h>
#include <string.h>

#include "common/clock.h"
#include "common/sink/internal.h"

/* Waits for a free buffer: this is the back-pressure. Caller holds append_lock. */
static int take_buffer(struct sink *s)
{
    pthread_mutex_lock(&s->lock);
    if (s->n_free == 0) {
        sink_wake(s); /* a piece of this very append may have completed one */
        uint64_t from = clock_monotonic_ns();
        while (s->n_free == 0 && sink_failure(s) == 0)
            pthread_cond_wait(&s->changed, &s->lock);
        stage_lap(&s->stages.appending, from, 0);
    }
    int r = sink_failure(s);
    if (r == 0) {
        s->current = s->free[--s->n_free];
        s->current->offset = sink_offset(s);
        atomic_store_explicit(&s->current->owed, 1, memory_order_relaxed);
    }
    pthread_mutex_unlock(&s->lock);
    return r;
}

/* One who owed something is done. True: the buffer can be written, and the I/O thread is to be
 * told. */
static bool settle(struct sink_buffer *b)
{
    return atomic_fetch_sub_explicit(&b->owed, 1, memory_order_acq_rel) == 1;
}

void sink_close_current(struct sink *s)
{
    struct sink_buffer *b = s->current;
    pthread_mutex_lock(&s->lock);
    s->filled[(s->first_filled + s->n_filled) % s->n_buffers] = b;
    s->n_filled++;
    pthread_mutex_unlock(&s->lock);
    s->current = NULL;
    settle(b);
}

/* Bytes of an append that lie in one buffer. */
struct piece {
    struct sink_buffer *in;
    uint8_t *to;
    const void *from;
    size_t bytes;
};

/* The next piece of an append. The buffer waits for copy_piece(). Caller holds append_lock. */
static int promise_piece(struct sink *s, const void *from, size_t len, struct piece *p)
{
    int r = s->current ? 0 : take_buffer(s);
    if (r < 0)
        return r;
    struct sink_buffer *b = s->current;
    size_t room = s->fill_bytes - b->used_bytes;
    *p = (struct piece){
        .in = b, .to = b->data + b->used_bytes, .from = from, .bytes = len < room ? len : room};
    b->used_bytes += p->bytes;
    atomic_fetch_add_explicit(&b->owed, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&s->offset, p->bytes, memory_order_relaxed);
    if (b->used_bytes == s->fill_bytes)
        sink_close_current(s);
    return 0;
}

static bool copy_piece(const struct piece *p)
{
    memcpy(p->to, p->from, p->bytes);
    return settle(p->in);
}

/* Only the last piece is copied with the lock open: an append that waits for a buffer must owe
 * nothing to those that it waits for. */
int sink_append(struct sink *s, const void *data, size_t len, uint64_t *offset)
{
    const uint8_t *from = data;
    struct piece p = {.bytes = 0};
    bool wake = false;
    pthread_mutex_lock(&s->append_lock);
    if (offset)
        *offset = sink_offset(s);
    int r = s->complete ? -EINVAL : sink_failure(s);
    while (len > 0 && r == 0) {
        if (p.bytes)
            wake |= copy_piece(&p);
        p.bytes = 0;
        r = promise_piece(s, from, len, &p);
        from += p.bytes;
        len -= p.bytes;
    }
    pthread_mutex_unlock(&s->append_lock);
    if (p.bytes)
        wake |= copy_piece(&p);
    if (wake)
        sink_wake(s);
    return r ? r : sink_failure(s);
}
