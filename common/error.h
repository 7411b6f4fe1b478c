/*
 * error.h - the one error rule of the tree.
 *
 * A function that can fail returns int: 0, or -errno. Where a person will want to know more, it
 * also takes a `struct error *` and fills it once, at the place that knows best what failed;
 * callers add context in front of the message with error_wrap(). The object carries the exit code
 * of the command line's contract and what became of the guest, so that main() only prints it.
 * assert() is for what our own code guarantees, never for data from a file, guest, VMM or kernel.
 */
#ifndef VMSNAP_COMMON_ERROR_H
#define VMSNAP_COMMON_ERROR_H

#include <stddef.h>

/* Exit codes: published, only ever added to. */
enum vmsnap_exit {
    VMSNAP_EXIT_DONE = 0,
    VMSNAP_EXIT_FAILED = 1, /* nothing published */
    VMSNAP_EXIT_USAGE = 2,
    VMSNAP_EXIT_WARNINGS = 3,  /* done, with warnings */
    VMSNAP_EXIT_TARGET = 10,   /* target not found or attach refused */
    VMSNAP_EXIT_BUSY = 11,     /* locked, or already being snapshotted */
    VMSNAP_EXIT_KERNEL = 12,   /* kernel feature missing */
    VMSNAP_EXIT_IMAGE = 13,    /* image damaged, or not an image */
    VMSNAP_EXIT_HAZARD = 14,   /* refused by name, see `vmsnap check` */
    VMSNAP_EXIT_MISMATCH = 15, /* image does not fit this host, VMM or command line */
    VMSNAP_EXIT_VMM = 16,      /* VMM failed to start or to load the state */
    VMSNAP_EXIT_TIMEOUT = 17,  /* timed out waiting for the VMM */
    VMSNAP_EXIT_NO_SPACE = 18,
    VMSNAP_EXIT_SIGINT = 130,
    VMSNAP_EXIT_SIGTERM = 143,
};

/* What became of the guest, for error messages and `guest_state` in JSON. */
enum guest_state {
    GUEST_UNTOUCHED, /* nothing was done to it yet: as it was before */
    GUEST_RUNNING,
    GUEST_PAUSED,  /* it was paused before, and still is */
    GUEST_WAITING, /* restore: blocked on pages that are not in; memory is right */
    GUEST_ENDED,   /* the VMM process is gone */
    GUEST_NOT_STARTED,
    GUEST_UNKNOWN,
};

struct error {
    int exit_code; /* enum vmsnap_exit; 0 while nothing is set */
    int err;       /* positive errno, 0 where none applies */
    enum guest_state guest;
    char message[768]; /* what failed, on what: one line, no final stop */
    char hint[384];    /* what to do next; may be empty */
    int vmm_pid;       /* whose guest; 0: not known, or there is only one */
};

/*
 * Fills *e (unless e is NULL) and returns -err, or -EIO when err is 0. `fmt` is not followed by
 * strerror: when err is not 0, ": strerror(err)" is appended. Overwrites an earlier error.
 * Leaves e->guest as it is. Any thread; e must not be shared without a lock.
 */
int error_set(struct error *e, enum vmsnap_exit exit_code, int err, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#ifdef __clang_analyzer__
/* What the analyzer can't know from outside: the result is never 0. */
#define error_set(e, exit_code, err, ...) ((error_set)(e, exit_code, err, __VA_ARGS__), -5)
#endif

/* Puts "context: " in front of the message. */
void error_wrap(struct error *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Sets what to do next; does nothing if a deeper function has already said it. */
void error_hint(struct error *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The words for `guest_state` in JSON: "untouched", "running", "paused", ... Static storage. */
const char *guest_state_name(enum guest_state state);

#endif
