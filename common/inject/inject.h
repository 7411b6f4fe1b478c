/*
 * inject.h - runs a few system calls inside another process, with ptrace, so that the process
 * cannot tell and survives whatever happens to us.
 *
 * Rules, from measurements on Linux 6.18 and 6.1 (docs/attaching.md):
 *  - only into a thread that is stopped in a system call, so that no rseq section, no half-run
 *    instruction sequence is disturbed;
 *  - a signal frame with the full register state lies on the thread's own stack below the red
 *    zone, and the injected call returns into libc's restorer: if we are SIGKILLed at any
 *    instruction, the thread finds its own way back;
 *  - signals are masked meanwhile, and the interrupted system call is restarted;
 *  - a seccomp filter is suspended for the injected calls and is back afterwards.
 */
#ifndef VMSNAP_COMMON_INJECT_H
#define VMSNAP_COMMON_INJECT_H

#include <stdint.h>

#include "common/error.h"
#include "common/target/target.h"

struct injector;

/*
 * Stops one suitable thread of the target (the others run on) and prepares it. Waits at most
 * `timeout_ms` for a thread that is in a system call. On failure the target is as it was: exit
 * code 10 (refused, already traced: says by whom), 17 (no thread became suitable).
 */
int inject_begin(struct injector **out, const struct target *t, int timeout_ms, struct error *e);

/* Runs one system call in it. *result gets its value (-errno of the target's kernel included).
 * Returns 0 or -errno when the injection itself failed. */
int inject_syscall(struct injector *inj, int64_t *result, long nr, uint64_t a0, uint64_t a1,
                   uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5);

/* Scratch memory of the thread's stack for buffers of injected calls: its address in the target
 * (INJECT_SCRATCH_BYTES long, valid until inject_end). */
#define INJECT_SCRATCH_BYTES 1024
uint64_t inject_scratch(const struct injector *inj);

/* Puts the thread back where it was and lets it run. Frees `inj`. Must be called. */
int inject_end(struct injector *inj, struct error *e);

/*
 * Makes a userfaultfd for the target's memory and fetches it. *fd is ours (O_CLOEXEC | O_NONBLOCK,
 * UFFDIO_API not yet done). When `keep` is not NULL the target keeps its copy open and *keep is its
 * number there; else the target's copy is closed before this returns. When the target may not
 * create one itself, a /dev/userfaultfd descriptor is passed in over a socket pair. Exit code 12
 * when the kernel refuses, 10 as inject_begin.
 */
int inject_userfaultfd(const struct target *t, int *fd, int *keep, int timeout_ms, struct error *e);

/*
 * Makes an empty memfd in the target, which keeps it (close-on-exec, sealable, not executable where
 * the kernel knows that): *keep is its number there. `name` (at most 64 bytes) is seen in
 * /proc/PID/fd as "/memfd:NAME (deleted)". Errors as inject_userfaultfd().
 */
int inject_memfd(const struct target *t, const char *name, int *keep, int timeout_ms,
                 struct error *e);

/* Gives it a copy of our descriptor `fd`, close-on-exec: *there is its number. Errors as
 * inject_userfaultfd(). */
int inject_give_fd(const struct target *t, int fd, int *there, int timeout_ms, struct error *e);

/* Runs madvise(advice) over [start, start+len) in pieces of `piece` bytes (0: one call). */
int inject_madvise(const struct target *t, uint64_t start, uint64_t len, int advice, uint64_t piece,
                   int timeout_ms, struct error *e);

/* close(fd) in the target. */
int inject_close_fd(const struct target *t, int fd, int timeout_ms, struct error *e);

#endif
