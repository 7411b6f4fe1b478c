/* pidfile.h - --pidfile: the VMM's process id in a file, for as long as the VMM lives. */
#ifndef VMSNAP_RESTORE_PIDFILE_H
#define VMSNAP_RESTORE_PIDFILE_H

#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"
#include "common/target/target.h"

/* A zeroed one is none. */
struct pidfile {
    const char *path; /* the caller's; NULL: nothing was written */
    int fd;           /* the file, to know it again */
    int vmm;          /* a pidfd of our own */
    int pid;
};

/*
 * Before anything is started: whether pidfile_write() would do, room on the disk included. Refused
 * are what is there and is no pidfile (exit code 1), and the pidfile of a process that lives (11).
 * Leaves nothing behind.
 */
int pidfile_check(const char *path, struct error *e);

/* Writes the VMM's pid to `path`, refusing as pidfile_check() does. On failure no file of ours is
 * left. */
int pidfile_write(struct pidfile *p, const char *path, const struct target *vmm, struct error *e);

/* The file that another process of ours wrote for process `pid`, whose pidfd `vmm` is: -errno if it
 * is not there, or says something else. `vmm` stays the caller's. */
int pidfile_adopt(struct pidfile *p, const char *path, pid_t pid, int vmm);

/* The VMM has ended, or never ran: removes the file if it is still the one that was written and
 * says what was written; another VM may have the name by now. Any state. */
void pidfile_remove(struct pidfile *p);

/*
 * The end of a process that has nothing else to do: lets go of all but the file, waits for the
 * VMM's end and then removes the file. Returns at once if there is none. SIGTERM and SIGINT end the
 * process meanwhile. No other thread may run.
 */
void pidfile_stay(struct pidfile *p);

/* When a process started, by the wall clock; 0: there is none. */
uint64_t pidfile_process_started_ns(pid_t pid);

#endif
