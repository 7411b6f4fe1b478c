/*
 * relaunch.h - what will be started: the given command line, or the recorded one with the recorded
 * directory, user and groups; less what can't be replayed, plus what a restore needs.
 */
#ifndef VMSNAP_RESTORE_RELAUNCH_H
#define VMSNAP_RESTORE_RELAUNCH_H

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

void relaunch_free(struct relaunch *l);

/* ---- for those who plan one ---- */

/*
 * Begins the plan for the VM that `description` describes (image_description(), parsed). vmm_argv
 * NULL: the recorded line, of which everything but the words is taken over; *recorded (else NULL)
 * are these, for relaunch_free_words(). Exit code 13: the record makes no sense. On failure the
 * caller still ends with relaunch_free().
 */
int relaunch_begin(struct relaunch *out, const json_t *description, char *const *vmm_argv,
                   char ***recorded, struct error *e);
int relaunch_add_word(struct relaunch *l, const char *word);
void relaunch_free_words(char **words);

/* Says what is dropped: aloud what a user wrote, with -v what an earlier restore added (`own`). */
void relaunch_say_dropped(const char *word, const char *value, bool own);

int relaunch_bad_record(struct error *e, const char *what);
int relaunch_no_memory(struct error *e);

/* ---- for those who use it ---- */

/* Whether the VMM itself reads or writes the terminal (a serial console, a monitor on stdio). */
bool relaunch_uses_terminal(const struct relaunch *l);

/* Where the VMM starts: "." is ours. */
const char *relaunch_directory(const struct relaunch *l);

/* Whether a descriptor of ours came from our caller: ours are all close-on-exec. */
bool relaunch_fd_inherited(int fd);

/* The line, quoted for a shell: the caller's to free(). NULL when memory is short. */
char *relaunch_quote(const struct relaunch *l);

/* The same as it can be given after `--` here: behind setpriv and env where the recorded user or
 * directory is another one than ours. */
char *relaunch_quote_start(const struct relaunch *l);

#endif
