/*
 * checked_syscall.h - a system call during which every register that must survive holds a known
 * value: the general registers, the 128 bytes of red zone, and the FPU's whole state (x87, SSE,
 * and what the CPU has of AVX, AVX-512, PKRU and AMX).
 */
#ifndef VMSNAP_TESTS_CHECKED_SYSCALL_H
#define VMSNAP_TESTS_CHECKED_SYSCALL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Makes the FPU patterns. `amx`: asks the kernel for AMX too; false when there is none. Once per
 * process, before checked_syscall(). */
bool checked_syscall_init(bool amx);

/* Names of the FPU components under test. */
const char *checked_syscall_components(void);

/* Runs the call; *result as the kernel gives it. Returns NULL, or what was different afterwards
 * (static storage). */
const char *checked_syscall(int64_t *result, long nr, const uint64_t args[6]);

#endif
