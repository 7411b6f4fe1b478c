/*
 * firecracker_hold.h - keeps a Firecracker where its state is saved and its memory does not change.
 * Private to snapshot/source/firecracker*.c.
 *
 * `PUT /snapshot/create` writes the state file, closes it, and then opens the memory file, all in
 * the one thread that also serves the devices. As soon as the call returns, that thread goes on
 * with them even though the VM is paused, and a packet that waits is put into guest memory: memory
 * would be newer than the state of the device. So the memory file is a FIFO that nobody reads:
 * opening it does not return. Meanwhile memory is protected. Once there is a reader it is opened,
 * can't be given the length of the memory, and the call fails without having written or changed
 * anything else (1.0 to 1.16: the order is the same, and only a full copy resets dirty pages).
 *
 * State file and FIFO lie in a directory of their own, made for the purpose in the VMM's root (a
 * jailed one has another), on a tmpfs if there is one, since the state file is synced in the pause.
 */
#ifndef VMSNAP_SNAPSHOT_FIRECRACKER_HOLD_H
#define VMSNAP_SNAPSHOT_FIRECRACKER_HOLD_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"
#include "common/target/target.h"

struct firecracker_hold {
    int parent_fd;       /* the directory that ours is in; -1 */
    int dir_fd;          /* ours; -1: not made */
    int inotify_fd;      /* tells when the state file was closed; -1 */
    int reader_fd;       /* the FIFO's other end, once released; -1 */
    char name[48];       /* of our directory */
    char path[PATH_MAX]; /* as the VMM sees it; "" before it is made */
};

/* Chooses the name. The process that calls it, and those forked from it, can remove what any of
 * them has made. Any state after it may be closed. */
void firecracker_hold_init(struct firecracker_hold *h);

/* Finds the directory that ours can be made in. Exit code 10. */
int firecracker_hold_find_place(struct firecracker_hold *h, const struct target *t,
                                struct error *e);

/* Lets go what a vmsnap holds there that was killed with its guardian more than ten seconds ago:
 * its VMM would answer nobody. The number of VMMs that were let go. */
unsigned firecracker_hold_clear_up(const struct firecracker_hold *h);

/* Makes the directory and the FIFO, owned by the VMM's user. */
int firecracker_hold_make(struct firecracker_hold *h, const struct target *t, struct error *e);

/* The body of PUT /snapshot/create; the caller's to free(). NULL: no memory. */
char *firecracker_hold_request(const struct firecracker_hold *h);

/* Whether the state file has been closed: it is complete, and the VMM is held from there on. Does
 * not block; wait for inotify_fd. */
bool firecracker_hold_is_held(struct firecracker_hold *h);

/* Whether a thread of the process waits where the FIFO is opened. True also where the kernel does
 * not tell (/proc/PID/task/TID/syscall). Some 10 us for each thread, up to the one that does. */
bool firecracker_hold_holds(const struct firecracker_hold *h, const struct target *t);

/* The state file, checked: *buf is malloc()ed. Exit code 16. */
int firecracker_hold_read_state(const struct firecracker_hold *h, void **buf, size_t *len,
                                struct error *e);

/* Lets the VMM go, whether it has come to the FIFO yet or will, and removes what was made: from
 * here on a request that comes late fails. Keep it open until the VMM has answered, then close.
 * Also by a process that has not made it. May be called twice. */
void firecracker_hold_release(struct firecracker_hold *h);

/* Closes; removes what may still be there. */
void firecracker_hold_close(struct firecracker_hold *h);

#endif
