/*
 * report.h - what a command says. Results go to stdout: as text for a person, or with --json as one
 * object per line, each with "type" and "schema_version". Errors go to stderr. Log lines and
 * warnings are common/log.h's, the progress line common/progress.h's.
 *
 * A command builds its JSON object in any case and calls report_object(); its text goes through
 * report_line() and report_closing(). Each call prints only in its own mode, so no command asks
 * which one it is in.
 *
 *     json_t *o = json_pack("{s:I, s:o}", "pages_checked", ..., "image", report_string(path));
 *     report_object("summary", o);
 *     report_closing("%s: %" PRIu64 " pages, none damaged", path, n);
 *
 * Main thread only.
 */
#ifndef VMSNAP_TOOLS_REPORT_H
#define VMSNAP_TOOLS_REPORT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#include "common/error.h"

#define REPORT_SCHEMA_VERSION 1

/* By main(), before the command runs. */
void report_setup(bool json, bool quiet);

/* Results go to stderr from now on: stdout carries an image. */
void report_to_stderr(void);

/* Results go to this file from now on (a detached server). Owned by the caller. */
void report_to_stream(FILE *f);

/* What the results have said of a guest so far, and its VMM's process (0: not said), for an error
 * that says that they were lost. */
void report_get_guest(enum guest_state *state, long *vmm_pid);

bool report_is_json(void);

/* Whether a progress line makes sense: stderr is a terminal, and not -q. */
bool report_wants_progress(void);

/* Prints the object (stolen; NULL is out of memory) with its type and the schema version in front.
 * Only with --json. */
void report_object(const char *type, json_t *object);

/* A result's line of text. Only without --json. A newline is added. */
void report_line(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* The closing line, which -q leaves out. Only without --json. */
void report_closing(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Prints an error on stderr: text of one line, then what to do next; or "type":"error".
 * `with_guest`: the text says what became of the guest. */
void report_error(const struct error *e, bool with_guest);

/* 0, or -errno when a result could not be written (closed pipe, full disk). Flushes. */
int report_finish(void);

/* A JSON string of text that may not be UTF-8 (a path, an argument): each byte that is not part of
 * a character becomes U+FFFD. New reference, NULL when memory is short. */
json_t *report_string(const char *text);

/* The JSON of an error. New reference. */
json_t *report_describe_error(const struct error *e);

#endif
