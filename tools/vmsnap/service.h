/*
 * service.h - tells the service manager how far a restore is (sd_notify(3)), where one listens: a
 * systemd unit of Type=notify sets NOTIFY_SOCKET. Elsewhere every call does nothing.
 *
 * libsystemd speaks the protocol. It is opened only when NOTIFY_SOCKET is set: linked in, it would
 * bring five libraries (3 MB) into every vmsnap, also into a snapshot, which locks its memory.
 *
 * Main thread. No text may come from an image: a newline in it would begin a variable of its own.
 */
#ifndef VMSNAP_TOOLS_SERVICE_H
#define VMSNAP_TOOLS_SERVICE_H

#include <stdbool.h>
#include <sys/types.h>

/*
 * Opens the library if somebody listens; a warning if it is not there. Before any fork: whichever
 * child of this process speaks later speaks in its name (sd_pid_notify(3); that takes root),
 * so that the manager believes it also with NotifyAccess=main.
 */
void service_open(void);

/* What `systemctl status` shows. */
void service_status(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* The guest runs: READY=1. */
void service_ready(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* The same for a process that is about to leave: `main_pid` is the unit's main process from now on.
 * Waits (at most 5 s) until the manager has read it. */
void service_ready_as(pid_t main_pid);

/* We end by ourselves. */
void service_stopping(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* This process is not the one that the manager listens to: nothing more is said. */
void service_leave(void);

/* Whether the library can be opened here: *why is its name, or what is missing. */
bool service_possible(const char **why);

#endif
