/*
 * internal.h - between the front of a sink (sink.c, sink/append.c) and its ends (sink/file.c,
 * sink/pipe.c). The operations below run on the sink's I/O thread, except close.
 */
#ifndef VMSNAP_COMMON_SINK_INTERNAL_H
#define VMSNAP_COMMON_SINK_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/pace.h"
#include "common/sink/sink.h"

struct sink_buffer {
    uint8_t *data;     /* SINK_BUFFER_BYTES, page-aligned, shared with processes forked later */
    size_t used_bytes; /* promised to appends */
    atomic_uint owed;  /* appends that have not copied their share yet, and 1 until it is closed */
    uint64_t offset;   /* in the file */
    uint64_t started_ns; /* its write */
};

struct sink_ops {
    /* The buffers are there; the I/O thread is not yet. May set s->reply_fd.
     * NULL: nothing to do. */
    int (*start)(struct sink *s);
    /* Starts to write a buffer. 1: written whole; 0: in flight, to be reaped; -errno. May wait,
     * but must come back with -ECANCELED once sink_failure() is set. */
    int (*write)(struct sink *s, struct sink_buffer *b);
    /* Takes one finished buffer without waiting: 1 and *b, or -errno and *b; 0 when none has
     * finished; -errno without *b: none will. reply_fd becomes readable when one has. NULL: nothing
     * is ever in flight. */
    int (*reap)(struct sink *s, struct sink_buffer **b);
    /* Every byte is written: makes it durable. Same rule as write. */
    int (*flush)(struct sink *s);
    /* Gives it its name; *e is filled on failure. NULL: it has none. */
    int (*publish)(struct sink *s, struct error *e);
    /* Releases s->end; the I/O thread has ended, writes may still be in flight. 0, or -EBUSY when
     * something of it hangs. */
    int (*close)(struct sink *s);
};

enum sink_state {
    SINK_OPEN,
    SINK_COMMITTING, /* no more appends; the I/O thread writes the rest and flushes */
    SINK_PUBLISHING, /* too late for a cancel */
    SINK_DONE,
};

struct sink {
    const struct sink_ops *ops;
    void *end;  /* the ops' own */
    char *name; /* for messages */
    const char *temporary_path;
    unsigned depth; /* how many buffers may be in flight */

    uint8_t *arena; /* all buffers */
    struct sink_buffer *buffers;
    unsigned n_buffers;
    size_t fill_bytes; /* a buffer is handed over when it holds that much */
    int event_fd;      /* wakes the I/O thread: a job, a cancel */
    int reply_fd;      /* readable: something to reap; -1 without */
    pthread_t thread;

    /* Held while an append is given its place, waits included, so that its bytes stay together.
     * Taken before `lock`. */
    pthread_mutex_t append_lock;
    struct sink_buffer *current;
    bool complete;           /* committed: no more appends */
    _Atomic uint64_t offset; /* written under append_lock */

    /* Short sections only. */
    pthread_mutex_t lock;
    pthread_cond_t changed;      /* a buffer is free, or the state or failure changed */
    struct sink_buffer **free;   /* stack */
    struct sink_buffer **filled; /* closed ones: ring of n_buffers, first in first out */
    unsigned n_free, first_filled, n_filled;
    enum sink_state state;
    bool ended;     /* the I/O thread touches nothing any more */
    atomic_int tid; /* its; 0: it has not begun */

    /* Set once: -errno. The fields behind it are written before it. */
    _Atomic int failure;
    const char *failed_step;
    uint64_t failed_offset;
    struct error publish_error;

    /* The I/O thread's own. */
    unsigned in_flight;
    struct pace pace;            /* the limit on the rate */
    uint64_t lap_ns;             /* all its time before this is charged to a stage */
    struct stage_time *wait_for; /* what it waits for when it waits now */

    struct sink_stages stages;
};

static inline int sink_failure(const struct sink *s)
{
    return atomic_load_explicit(&s->failure, memory_order_acquire);
}

/* Wakes the I/O thread. Any thread. */
void sink_wake(struct sink *s);

/* No more goes into the current buffer. Caller holds append_lock. */
void sink_close_current(struct sink *s);

/* Waits until something happened on event_fd, or poll(2) says `events` (or an error) of `fd` (may
 * be -1). 1: `fd` is ready, 0: not yet, -errno. */
int sink_wait(struct sink *s, int fd, short events);

/* The same, but not for longer than timeout_ms (-1: no limit). */
int sink_wait_for(struct sink *s, int fd, short events, int timeout_ms);

/* Builds the front around an end and starts the I/O thread. Takes `end` over: it is closed on
 * failure too. */
int sink_start(struct sink **out, const struct sink_ops *ops, void *end, const char *name,
               const char *temporary_path, unsigned depth, const struct sink_options *options,
               struct error *e);

#endif
