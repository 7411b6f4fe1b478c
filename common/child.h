/*
 * child.h - a process of our own that does what may sleep in the kernel without end (file systems),
 * and so must hold nothing of ours that a guest or a user waits for.
 */
#ifndef VMSNAP_COMMON_CHILD_H
#define VMSNAP_COMMON_CHILD_H

#include <stdbool.h>

/* Descriptors that a child can keep. */
#define CHILD_MAX_KEEP 257u

/*
 * Forks; the child closes all descriptors but `keep` (n of them, each once, in any order), puts
 * /dev/null where stdin, stdout or stderr are missing then, and calls run(opaque), which never
 * returns. All signals stay blocked in it. Since the caller may have threads, `run` makes system
 * calls only. Until the child is through with closing it still holds everything: who must
 * know waits for a word from `run`.
 *
 * Returns a pidfd, which child_end() or child_leave() takes, or -errno. No wait for "any child"
 * sees it (its end is told by no signal), so that who waits for other children is not concerned,
 * and nobody else can reap it.
 */
int child_fork(const int *keep, unsigned n, void (*run)(void *opaque), void *opaque);

/* Kills it, and waits for nothing. child_end() follows. */
void child_kill(int pidfd);

/* Kills and reaps it. -EBUSY: it still sleeps in the kernel after grace_ms; it ends by itself when
 * it can, and stays a zombie until we end. */
int child_end(int pidfd, int grace_ms);

/* The same, but one that gets no CPU to end with is waited for longer (THREAD_STARVED_MS). */
int child_end_patiently(int pidfd, int grace_ms);

/* Whether it does not sleep (thread.h): what it is asked for is late for want of a CPU. */
bool child_is_starved(int pidfd);

/* Lets it go on if it still runs. */
void child_leave(int pidfd);

#endif
