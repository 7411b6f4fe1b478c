/* target_kit.h - what the tests of injection into particular processes have in common. */
#ifndef VMSNAP_TESTS_TARGET_KIT_H
#define VMSNAP_TESTS_TARGET_KIT_H

#include <stdatomic.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"

/* Shared by the test and its target; zeroed by kit_start(). */
struct kit_shared {
    atomic_int ready, stop, value;
    uintptr_t address;
    int fd;
};
extern struct kit_shared *kit_shared;

/* Once, before the others. */
void kit_init(void);

/* Starts a target, and waits until it sets `ready`. */
pid_t kit_start(int (*fn)(void *opaque), void *opaque);

/* In a target: waits, in poll(), for `stop`. */
void kit_wait_for_stop(void);
/* A whole target that does only this. */
int kit_polite(void *opaque);

/* Injects a userfaultfd and looks whether it works. */
int kit_inject(pid_t pid, int timeout_ms, struct error *e);

/* Tells the target to stop: it must find everything in order and exit with 0. A KTEST_ result. */
int kit_ends_well(pid_t pid);

/* The state letter of /proc/PID/stat. */
char kit_state(pid_t pid);

#endif
