/*
 * private_dir.h - the directory that holds the socket to which the VMM connects.
 *
 * Its name is random, root's own, and it is gone as soon as the VMM has connected. Only if a
 * restore and its keeper (keeper.h) are both killed before that is one left behind; the next
 * restore removes it. That its owner is gone is told by a lock on the directory, which the kernel
 * drops with the owner.
 */
#ifndef VMSNAP_RESTORE_PRIVATE_DIR_H
#define VMSNAP_RESTORE_PRIVATE_DIR_H

struct private_dir {
    char path[64];        /* "": there is none (any more) */
    char socket_path[96]; /* nothing is there yet */
    int lock_fd;
};

/* Removes what others have left behind, as far as it is certain; then makes one, which all may
 * enter: the VMM may run as another user. 0 or -errno. */
int private_dir_make(struct private_dir *d);

/* With the socket. Any state that private_dir_make() or zeros have left. */
void private_dir_remove(struct private_dir *d);

#endif
