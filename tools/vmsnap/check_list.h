/*
 * check_list.h - the items of `vmsnap check`, said as they are found: a line of a table for a
 * person, an object with --json.
 */
#ifndef VMSNAP_TOOLS_CHECK_LIST_H
#define VMSNAP_TOOLS_CHECK_LIST_H

#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"

struct check_list {
    size_t n_items, n_refused;
    enum vmsnap_exit exit_code; /* of the worst refusal so far; 0: none */
};

/* All is well, or nothing of that name was seen. */
void check_ok(struct check_list *list, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Something is missing or was seen that refuses nothing. */
void check_note(struct check_list *list, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* A refusal with this exit code. `allow`: the word that --allow takes, or NULL. */
void check_refused(struct check_list *list, const char *name, enum vmsnap_exit exit_code,
                   const char *allow, const char *fmt, ...) __attribute__((format(printf, 5, 6)));

/* The same, from an error. */
void check_failed(struct check_list *list, const char *name, const struct error *e);

/* The last line, or the object "summary". Returns the exit code. */
int check_finish(const struct check_list *list);

#endif
