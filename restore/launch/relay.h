/*
 * relay.h - what a detached VMM writes to stderr reaches ours as long as somebody waits for it, but
 * does not keep our caller's terminal, pipe or ssh connection open for the VM's whole life.
 */
#ifndef VMSNAP_RESTORE_RELAY_H
#define VMSNAP_RESTORE_RELAY_H

#include <pthread.h>
#include <stdbool.h>

struct relay {
    pthread_t thread;
    int read_fd, stop_fd;
    bool started;
};

/* *fd is what the VMM gets as stderr; the caller closes it once the VMM has it. 0 or -errno. */
int relay_start(struct relay *r, int *fd);

/* Passes on what is there, and ends. Later writes of the VMM to its stderr fail (EPIPE). */
void relay_stop(struct relay *r);

#endif
