/*
 * encode.h - captured clusters in, records of the image out: a queue and the compressor threads
 * behind it. Submitting never waits and never fails, so the fault thread may do it.
 */
#ifndef VMSNAP_SNAPSHOT_ENCODE_H
#define VMSNAP_SNAPSHOT_ENCODE_H

#include <stdint.h>

#include "common/error.h"
#include "common/image/writer.h"
#include "common/pool.h"
#include "common/stage.h"

struct encoder;

/* A copy of one cluster, in pool buffer number `buffer`. */
struct captured {
    uint64_t cluster;
    uint32_t bytes;
    uint32_t poisoned; /* bit i: page i is poisoned; its bytes are zeros */
};

/* Starts `n_threads` compressors of zstd level `level`. Pool and writer are borrowed. */
int encoder_open(struct encoder **out, struct pool *pool, struct image_writer *writer,
                 unsigned n_threads, int level, struct error *e);

/* Hands a filled buffer on; it goes back to the pool by itself. Any thread. */
void encoder_submit(struct encoder *enc, uint32_t buffer, const struct captured *captured);

/* The same for `n` of them: as many compressors are woken as there is work for. */
void encoder_submit_many(struct encoder *enc, const uint32_t *buffers,
                         const struct captured *captured, unsigned n);

/* 0, or the first -errno that a compressor met (the sink's). Any thread. */
int encoder_error(const struct encoder *enc);

/* Waits until all that was submitted is in the image, ends the threads. Nobody may submit any
 * more. Returns encoder_error(). */
int encoder_finish(struct encoder *enc);

/* Ends the threads without writing what is queued (the sink must have been cancelled first). */
void encoder_cancel(struct encoder *enc);

/* The poisoned pages seen, by cluster ascending; valid after encoder_finish() until close. */
const struct image_poison *encoder_poison(struct encoder *enc, uint64_t *n);

/* What all compressors together spent their time on. */
struct encoder_stages {
    struct stage_time waiting;   /* for something to do */
    struct stage_time looking;   /* for zeros; bytes looked at */
    struct stage_time packing;   /* in zstd; bytes before it */
    struct stage_time appending; /* checksum, and into a write buffer (sink_stages.appending is the
                                    waiting in it); bytes after zstd */
};

/* Borrowed, until close. */
const struct encoder_stages *encoder_stages(const struct encoder *enc);

void encoder_close(struct encoder *enc);

#endif
