/*
 * inbox.h - the kernel's messages of a userfaultfd: faults go to those that wait (waiting.h),
 * events are acted on at once. The server's thread alone.
 */
#ifndef VMSNAP_RESTORE_INBOX_H
#define VMSNAP_RESTORE_INBOX_H

#include <linux/userfaultfd.h>
#include <stdint.h>

#include "restore/serve/answer.h"
#include "restore/serve/linger.h"
#include "restore/serve/serve.h"
#include "restore/serve/waiting.h"

struct inbox {
    int uffd;                  /* not owned */
    struct uffd_msg *messages; /* SERVER_MESSAGES places; a successor looks at what is left there */
    struct waiting *waiting;   /* the others as well: who is told */
    struct answerer *answerer;
    struct linger *linger;
    uint64_t last_empty_ns; /* when there was none: what comes next has waited since then */
};

/* Reads what there is. An event never stays there for want of room: before it is read nothing can
 * be installed. Returns how many messages. */
int inbox_read(struct inbox *in);

/*
 * The server before us may have died between the read of an event and its mark: the kernel had
 * written the event to `messages` by then, and let its sender go on. Faults are another matter:
 * each thread that waits is woken and comes again.
 */
void inbox_take_over(struct inbox *in, const struct blocks *blocks);

#endif
