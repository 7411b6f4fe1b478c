/* stepping_test.h - what the engine's test programs begin and end with: a process that plays the
 * guest, a name for its image, a snapshot of it. */
#ifndef VMSNAP_TESTS_STEPPING_TEST_H
#define VMSNAP_TESTS_STEPPING_TEST_H

#include "tests/engine/stepping_source.h"

struct stepping_test {
    struct stepping_board *board;
    struct stepping_source source;
    char image[48];     /* nothing has this name yet */
    struct error error; /* of the last snapshot that failed */
};

/* 0; or the exit code of a test that can't run here, whose reason is printed. */
int stepping_test_begin(struct stepping_test *t);

/* Before the start: one more block; what else it is to be may be set in it. */
struct stepping_block *stepping_test_add(struct stepping_test *t, enum stepping_kind kind,
                                         uint64_t n_pages);

/* Starts the process and makes a source of it. False: not possible here, printed. */
bool stepping_test_start(struct stepping_test *t);

/* A snapshot: 0 and a new reference to its summary, or -errno; then the error is printed, and
 * *summary NULL. */
int stepping_test_snapshot(struct stepping_test *t, const struct snapshot_options *options,
                           json_t **summary);

/* Whether the process writes on: it has 50 ms for a page. */
bool stepping_test_goes_on(const struct stepping_test *t);

/* Whether the process has found pages of its own that are wrong; printed. */
bool stepping_test_found_wrong(const struct stepping_test *t);

/* Ends the process and removes the image. */
void stepping_test_end(struct stepping_test *t);

/* A number of the summary; 0 if it is not there. */
json_int_t stepping_number(const json_t *summary, const char *key);

#endif
