/*
 * output.h - what becomes of clusters in a worker, whether they come from a VM or from a file:
 * buffers, the compressors behind them, the image's writer and its sink, and its name at the end.
 * All calls on the worker's main thread; it is the one that fills and frees the members.
 */
#ifndef VMSNAP_SNAPSHOT_OUTPUT_H
#define VMSNAP_SNAPSHOT_OUTPUT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/image/writer.h"
#include "common/pool.h"
#include "common/sink/sink.h"
#include "snapshot/guardian.h"
#include "snapshot/save/encode.h"

struct output_options {
    const char *image_path; /* "-": stdout */
    bool overwrite;
    uint64_t bwlimit; /* bytes per second; 0: none */
    unsigned n_write_buffers;
    uint32_t n_page_buffers;
    uint32_t n_reserved; /* of those, for faults */
};

/* Zeroed before output_open(). */
struct output {
    struct guardian_board *board;
    struct sink *sink;
    struct pool pool;
    struct image_writer *writer;
    struct encoder *encoder;
};

/* The file (the guardian is told its temporary name) and the buffers. Whatever is returned,
 * output_close() follows. */
int output_open(struct output *out, struct guardian_board *board,
                const struct output_options *options, struct error *e);

/* Writer and compressors: from here on clusters can be submitted. */
int output_start(struct output *out, const struct region *regions, uint32_t n_regions,
                 unsigned n_threads, int level, struct error *e);

/* Waits until all that was submitted is with the sink. */
int output_drain(struct output *out, struct error *e);

/* Says in *e what kept the compressors from going on: the sink if it has failed, or else `ret`,
 * which it returns. */
int output_explain(const struct output *out, int ret, struct error *e);

/* After image_writer_finish(): the image gets its name, and the guardian knows. From here on no
 * signal of the guardian's ends us. */
int output_commit(struct output *out, struct error *e);

/* Keys of the summary: bytes and pages; id and instant. */
void output_add_sizes(const struct output *out, json_t *summary);
void output_add_identity(const struct output *out, json_t *summary, uint64_t instant_ns);

/* Bytes of buffers that were in use at once, at most. */
uint64_t output_peak_bytes(const struct output *out);

/* Lets whoever waits for the sink go. Does not wait. */
void output_cancel(struct output *out);

/* Ends the threads; without a commit before nothing is left behind. */
void output_close(struct output *out);

#endif
