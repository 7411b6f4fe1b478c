/* keeper.h - sees to it that nothing is left behind if this process is killed (SIGKILL, OOM) before
 * the guest runs. */
#ifndef VMSNAP_RESTORE_KEEPER_H
#define VMSNAP_RESTORE_KEEPER_H

#include <sys/types.h>

/*
 * Starts the keeper: a process of its own session that is no child of ours and waits for our end.
 * If that comes before keeper_dismiss(), it kills every process named to it, their descendants, and
 * removes `directory` with the file `socket_path`. Before any thread. *fd is the line to it.
 * 0 or -errno.
 */
int keeper_start(int *fd, const char *directory, const char *socket_path);

/* One more process to be ended: a child or descendant of ours that is alive. */
void keeper_watch(int fd, pid_t pid);

/* It is to end without doing anything. Closes *fd; -1 is allowed. */
void keeper_dismiss(int *fd);

#endif
