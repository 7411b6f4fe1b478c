/*
 * uffd.h - the client's side of Firecracker's page-fault handoff: guest memory is registered with a
 * userfaultfd, which goes to whoever listens on a UNIX socket, with one message that says where
 * memory lies. There is no reply.
 */
#ifndef MINIVM_UFFD_H
#define MINIVM_UFFD_H

#include <stdbool.h>
#include <stddef.h>

#include "vm.h"

/*
 * For memory that nobody has touched. Afterwards each first touch of a page waits for the other
 * side. The userfaultfd and the connection stay open for life. False: `why`.
 */
bool uffd_hand_off(const struct vm *vm, char *why, size_t why_bytes);

#endif
