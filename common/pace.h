/*
 * pace.h - a limit on bytes per second that is kept evenly: each piece has a time before which it
 * is not begun. A pause is not made up for, so that no second sees more than the limit; only who
 * wakes up late may catch up a little. No lock of its own: one thread at a time.
 */
#ifndef VMSNAP_COMMON_PACE_H
#define VMSNAP_COMMON_PACE_H

#include <stdint.h>

#define PACE_SLACK_NS 20000000u

struct pace {
    uint64_t bytes_per_s; /* 0: no limit */
    uint64_t next_ns;     /* the next piece is not begun before */
};

/* How long the next piece has to wait; 0: not at all. */
static inline uint64_t pace_wait_ns(const struct pace *p, uint64_t now_ns)
{
    return p->bytes_per_s && now_ns < p->next_ns ? p->next_ns - now_ns : 0;
}

/* A piece of `bytes` is begun now. */
static inline void pace_charge(struct pace *p, uint64_t now_ns, uint64_t bytes)
{
    if (!p->bytes_per_s)
        return;
    if (p->next_ns + PACE_SLACK_NS < now_ns)
        p->next_ns = now_ns - PACE_SLACK_NS;
    p->next_ns += (uint64_t)((double)bytes * 1e9 / (double)p->bytes_per_s);
}

#endif
