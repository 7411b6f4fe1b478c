/* front.h - the socket that VMMs connect to. */
#ifndef VMSNAP_RESTORE_LISTEN_FRONT_H
#define VMSNAP_RESTORE_LISTEN_FRONT_H

#include <sys/stat.h>

#include "common/error.h"

struct front {
    int fd; /* listening, close-on-exec, non-blocking; -1: closed */
    const char *path;
    struct stat made; /* what lay at `path` then: ours */
};

/*
 * Listens at `path`, mode 0600. What a dead process has left there is replaced. Exit code 14 when
 * somebody listens there, 2 when the path is too long, 1. Single-threaded: changes the umask for a
 * moment.
 */
int front_open(struct front *f, const char *path, struct error *e);

/* Takes no more, and removes the file if it still is ours. Any state after front_open(). */
void front_close(struct front *f);

/* In a child: only our copy of the descriptor. */
void front_forget(struct front *f);

#endif
