/* sandbox.h - a seccomp filter as strict as Firecracker's, for who attaches to a
 * VMM that has one. */
#ifndef MINIVM_SANDBOX_H
#define MINIVM_SANDBOX_H

#include <stdbool.h>
#include <stddef.h>

/* For all threads, from now on. A call that is not on the list ends the process with SIGSYS. */
bool sandbox_enter(char *why, size_t why_bytes);

#endif
