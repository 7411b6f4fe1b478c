#include "snapshot/output.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/format.h"
#include "common/log.h"

int output_open(struct output *out, struct guardian_board *board,
                const struct output_options *options, struct error *e)
{
    out->board = board;
    const struct sink_options so = {.overwrite = options->overwrite,
                                    .n_buffers = options->n_write_buffers,
                                    .bytes_per_s = options->bwlimit};
    int ret = strcmp(options->image_path, "-") == 0
                  ? sink_open_fd(&out->sink, STDOUT_FILENO, &so, e)
                  : sink_open_file(&out->sink, options->image_path, &so, e);
    if (ret)
        return ret;
    const char *temporary = sink_temporary_path(out->sink);
    if (temporary)
        snprintf(board->temporary, sizeof(board->temporary), "%s", temporary);
    uint32_t n = options->n_page_buffers;
    ret = pool_init(&out->pool, n, IMAGE_CLUSTER_BYTES, options->n_reserved);
    return ret ? error_set(e, VMSNAP_EXIT_FAILED, -ret, "cannot allocate %llu bytes of buffers",
                           (unsigned long long)n * IMAGE_CLUSTER_BYTES)
               : 0;
}

int output_start(struct output *out, const struct region *regions, uint32_t n_regions,
                 unsigned n_threads, int level, struct error *e)
{
    int ret = image_writer_open(&out->writer, out->sink, regions, n_regions, e);
    if (!ret)
        ret = encoder_open(&out->encoder, &out->pool, out->writer, n_threads, level, e);
    return ret;
}

int output_explain(const struct output *out, int ret, struct error *e)
{
    return sink_error(out->sink, e) ? ret
                                    : error_set(e, VMSNAP_EXIT_FAILED, -ret, "cannot compress");
}

int output_drain(struct output *out, struct error *e)
{
    int ret = encoder_finish(out->encoder);
    return ret ? output_explain(out, ret, e) : 0;
}

int output_commit(struct output *out, struct error *e)
{
    int ret = sink_commit(out->sink, e);
    if (ret)
        return ret;
    /* In this order: a finished image is not to end by a signal of the guardian's. */
    atomic_store(&out->board->finishing, false);
    atomic_store(&out->board->published, true);
    out->board->temporary[0] = '\0';
    return 0;
}

static void add_number(json_t *o, const char *key, uint64_t n)
{
    json_object_set_new(o, key, json_integer((json_int_t)n));
}

void output_add_sizes(const struct output *out, json_t *summary)
{
    struct image_totals totals;
    image_writer_totals(out->writer, &totals);
    add_number(summary, "ram_bytes", totals.pages_total * IMAGE_PAGE_BYTES);
    add_number(summary, "image_bytes", totals.image_bytes);
    add_number(summary, "pages_total", totals.pages_total);
    add_number(summary, "pages_zero", totals.pages_zero);
    add_number(summary, "pages_stored", totals.pages_stored);
}

void output_add_identity(const struct output *out, json_t *summary, uint64_t instant_ns)
{
    char id[33], instant[FORMAT_MAX];
    const uint8_t *raw = image_writer_id(out->writer);
    for (int i = 0; i < 16; i++)
        snprintf(id + 2 * i, 3, "%02x", raw[i]);
    json_object_set_new(summary, "image_id", json_string(id));
    json_object_set_new(summary, "instant", json_string(format_instant(instant, instant_ns)));
}

uint64_t output_peak_bytes(const struct output *out)
{
    return pool_peak_bytes(&out->pool) + sink_buffer_bytes(out->sink);
}

void output_cancel(struct output *out)
{
    if (out->sink)
        sink_cancel(out->sink);
}

void output_close(struct output *out)
{
    if (out->encoder) {
        encoder_cancel(out->encoder);
        encoder_close(out->encoder);
    }
    if (out->sink && sink_close(out->sink))
        log_warn("the sink hangs; its thread ends with this process");
    if (out->writer)
        image_writer_close(out->writer);
}
