/*
 * relaunch.h - what will be started: the given command line, or the recorded one with the recorded
 * directory, user and groups; less what can't be replayed, plus what a restore needs.
 */
#ifndef VMSNAP_RESTORE_QEMU_RELAUNCH_H
#define VMSNAP_RESTORE_QEMU_RELAUNCH_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "common/error.h"

/* The private directory's name begins so, and the socket in it is called so: that is how additions
 * of an earlier restore are known on a line that was recorded from a restored VM. */
#define RELAUNCH_PRIVATE_PREFIX "vmsnap-restore-"
#define RELAUNCH_PRIVATE_SOCKET "qmp"

struct relaunch {
    bool recorded;    /* the image's own line: it is code that came with the image */
    char *executable; /* recorded: the file; NULL: argv[0] is looked up in PATH */
    char **argv;      /* NULL-terminated, owned */
    size_t argc;
    char **environment; /* recorded: NULL-terminated, owned; NULL: ours */
    char *cwd;          /* recorded; NULL: ours */
    bool as_user;       /* recorded: uid, gid and groups are to be taken on */
    uid_t uid;
    gid_t gid;
    gid_t *groups;
    size_t n_groups;
    bool resumes; /* the guest ran when it was snapshotted */
};

/*
 * Plans the launch of the VM that `description` describes (image_description(), parsed). vmm_argv
 * NULL: the recorded line. Says (log) what it drops. Exit codes: 13 (the recorded line makes no
 * sense), 15 (the given line asks for another machine type).
 */
int relaunch_plan(struct relaunch *out, const json_t *description, char *const *vmm_argv,
                  struct error *e);
void relaunch_free(struct relaunch *l);

/* Adds what lets us load the state: -S, -incoming defer, and a QMP connection to `socket_path`. */
int relaunch_add_private(struct relaunch *l, const char *socket_path, struct error *e);

/* Whether the VMM itself reads or writes the terminal (a serial console, a monitor on stdio). */
bool relaunch_uses_terminal(const struct relaunch *l);

/* The line, quoted for a shell: the caller's to free(). NULL when memory is short. */
char *relaunch_quote(const struct relaunch *l);

#endif
