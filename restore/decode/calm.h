/*
 * calm.h - how the fill workers get the CPU. What is prefetched they decode as any thread: the
 * guest is about to wait for it. The background pass first takes only CPUs that nobody wants, for
 * the guest has just been let run and somebody waits for its first answers; not for ever, since on
 * a host that is always busy it would never end. And when a fault waits for what one of them has
 * claimed, they are as important as the server.
 */
#ifndef VMSNAP_RESTORE_CALM_H
#define VMSNAP_RESTORE_CALM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define CALM_MAX_THREADS 16u
#define CALM_LAST_NS 5000000000u /* so long the background pass comes last */

enum calm_mode {
    CALM_AS_ANY, /* at first */
    CALM_LAST,
    CALM_NICE,
};

struct calm {
    atomic_int tids[CALM_MAX_THREADS]; /* 0: not yet known */
    atomic_int mode;                   /* enum calm_mode */
    atomic_bool hurried;
};

/* A worker says who it is; numbers from 0. */
void calm_join(struct calm *c, unsigned number);
/* It ends: its number may soon be another thread's. */
void calm_leave(struct calm *c, unsigned number);

/* A worker, of itself, from now on. Without CAP_SYS_NICE it never comes last: it could not leave
 * that again. */
void calm_down(struct calm *c, enum calm_mode mode);

/* All of them: the guest goes through its memory in order, and is about to touch what they are to
 * bring in. They come last no more. The server's thread. */
void calm_want(struct calm *c);

/* All of them at once, or back to how they were. Any thread. */
void calm_hurry(struct calm *c, bool hurry);

#endif
