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
 * Both for memory that nobody has touched: from the first on each touch of a page waits for the
 * other side, which the second tells. The userfaultfd, what the first returns, and the connection
 * stay open for life. -1, false: `why`.
 */
int uffd_open(const struct vm *vm, char *why, size_t why_bytes);
bool uffd_hand_off(const struct vm *vm, int uffd, char *why, size_t why_bytes);

#endif
