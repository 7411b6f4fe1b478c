/*
 * Theory of operation
 *
 * The main thread goes through the file, from data to data: what lies between is noted as zero
 * without being read. It takes as many buffers as are free, a megabyte's worth at most, reads into
 * them with one call and hands them to the same compressors that a snapshot has. Memory is bounded
 * by the buffers. The work is done in a child: a signal ends it wherever it is, also asleep in a
 * file system that hangs, and the guardian removes what it may leave.
 */
#include "snapshot/import/import.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/crc64.h"
#include "common/progress.h"
#include "common/testhook.h"
#include "common/vmm/firecracker.h"
#include "snapshot/guardian.h"
#include "snapshot/import/memory_file.h"
#include "snapshot/interrupts.h"
#include "snapshot/output.h"

#define WRITE_BUFFERS 8u
#define PAGE_BUFFERS 1536u /* 24 MiB */
#define BATCH_CLUSTERS 64u
#define TICK_MS 50u

struct import {
    const struct import_options *options;
    struct guardian_board *board;
    struct memory_file file;
    void *state;
    size_t state_bytes;
    bool state_doubtful; /* it does not end with its own check sum */
    struct output output;
    struct progress progress;
    struct interrupts interrupts;
    uint64_t started_ns, finished_ns, instant_ns;
};

/* ---- before anything is written ---- */

#define STATE_HINT "give the file that PUT /snapshot/create wrote to snapshot_path"

static int state_error(const char *path, const char *what, struct error *e)
{
    error_set(e, VMSNAP_EXIT_IMAGE, 0, "%s is no vmstate file: it is %s", path, what);
    error_hint(e, STATE_HINT);
    return -EINVAL;
}

/* All of it, into our own memory. */
static int read_state(struct import *im, struct error *e)
{
    const char *path = im->options->state_path;
    if (!path)
        return 0;
    struct stat st;
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st)) {
        int rc = error_set(e, VMSNAP_EXIT_FAILED, errno, "can't open the vmstate file %s", path);
        error_hint(e, STATE_HINT);
        return rc;
    }
    if (!S_ISREG(st.st_mode))
        return state_error(path, "not a regular file", e);
    if (st.st_size == 0)
        return state_error(path, "empty", e);
    if (st.st_size > FIRECRACKER_MAX_STATE_BYTES)
        return state_error(path, "longer than 64 MiB", e);
    if (st.st_ino == im->file.before.st_ino && st.st_dev == im->file.before.st_dev)
        return state_error(path, "the memory file", e);
    im->state = malloc((size_t)st.st_size);
    if (!im->state)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "can't read %s", path);
    while (im->state_bytes < (size_t)st.st_size) {
        ssize_t n =
            read(fd, (char *)im->state + im->state_bytes, (size_t)st.st_size - im->state_bytes);
        if (n <= 0)
            return error_set(e, VMSNAP_EXIT_FAILED, n ? errno : EIO, "can't read %s", path);
        im->state_bytes += (size_t)n;
    }
    im->state_doubtful = crc64(0, im->state, im->state_bytes) != 0;
    return 0;
}

static int open_output(struct import *im, struct error *e)
{
    const struct import_options *o = im->options;
    const struct output_options out = {.image_path = o->image_path,
                                       .overwrite = o->overwrite,
                                       .bwlimit = o->bwlimit,
                                       .n_write_buffers = WRITE_BUFFERS,
                                       .n_page_buffers = PAGE_BUFFERS};
    return output_open(&im->output, im->board, &out, e);
}

static int prepare(struct import *im, struct error *e)
{
    const struct import_options *o = im->options;
    int ret = memory_file_open(&im->file, o->memory_path, e);
    if (!ret)
        ret = read_state(im, e);
    if (!ret)
        ret = open_output(im, e);
    if (ret)
        return ret;
    im->instant_ns = (uint64_t)im->file.before.st_mtim.tv_sec * 1000000000u +
                     (uint64_t)im->file.before.st_mtim.tv_nsec;
    const struct region region = {.name = FIRECRACKER_REGION_NAME,
                                  .bytes = im->file.bytes,
                                  .page_bytes = IMAGE_PAGE_BYTES,
                                  .kind = REGION_ANON,
                                  .fd = -1};
    return output_start(&im->output, &region, 1, o->n_threads, o->level, e);
}

/* ---- the file, from its start to its end ---- */

static void note_holes(struct import *im, uint64_t from, uint64_t to)
{
    for (uint64_t at = from; at < to; at += IMAGE_CLUSTER_BYTES)
        image_writer_add_zero(im->output.writer, at / IMAGE_CLUSTER_BYTES);
}

/* Up to `max` buffers, at least one; 0: a signal, or a failure of the compressors. */
static uint32_t take_buffers(struct import *im, uint32_t *buffers, uint32_t max)
{
    uint32_t n = pool_try_take_many(&im->output.pool, POOL_SWEEP, buffers, max);
    while (n == 0 && !pool_is_cancelled(&im->output.pool) && !interrupts_seen(&im->interrupts)) {
        buffers[0] = pool_take_within(&im->output.pool, POOL_SWEEP, TICK_MS);
        n = buffers[0] != POOL_NONE;
    }
    return n;
}

/* Reads clusters from `at` on, no further than `end`, and hands them on. *at moves on. */
static int read_batch(struct import *im, uint64_t *at, uint64_t end, struct error *e)
{
    uint32_t buffers[BATCH_CLUSTERS];
    struct iovec iov[BATCH_CLUSTERS];
    struct captured captured[BATCH_CLUSTERS];
    uint64_t wanted = (end - *at + IMAGE_CLUSTER_BYTES - 1) / IMAGE_CLUSTER_BYTES;
    uint32_t n =
        take_buffers(im, buffers, wanted < BATCH_CLUSTERS ? (uint32_t)wanted : BATCH_CLUSTERS);
    if (n == 0)
        return im->interrupts.by ? -EINTR : encoder_error(im->output.encoder);
    uint64_t next = *at;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t left = end - next;
        uint32_t bytes = left < IMAGE_CLUSTER_BYTES ? (uint32_t)left : IMAGE_CLUSTER_BYTES;
        iov[i] = (struct iovec){pool_memory(&im->output.pool, buffers[i]), bytes};
        captured[i] = (struct captured){.cluster = next / IMAGE_CLUSTER_BYTES, .bytes = bytes};
        next += bytes;
    }
    int ret = memory_file_read(&im->file, *at, iov, (int)n, e);
    if (ret)
        return ret;
    encoder_submit_many(im->output.encoder, buffers, captured, n);
    *at = next;
    return 0;
}

static int read_all(struct import *im, struct error *e)
{
    uint64_t at = 0, start, end;
    int ret = 0;
    progress_start(&im->progress, "imported", im->options->progress);
    while (!ret && at < im->file.bytes) {
        ret = memory_file_next_data(&im->file, at, &start, &end, e);
        if (ret)
            break;
        note_holes(im, at, start);
        for (at = start; !ret && at < end;) {
            ret = interrupts_seen(&im->interrupts) ? -EINTR : read_batch(im, &at, end, e);
            progress_update(&im->progress, at, im->file.bytes, 0);
            TESTHOOK_POINT("import-reading");
        }
    }
    progress_finish(&im->progress);
    return ret;
}

/* ---- the end of the image ---- */

static int write_tail(struct import *im, struct error *e)
{
    json_t *description = firecracker_describe();
    CLEANUP_FREE char *text = description ? json_dumps(description, JSON_COMPACT) : NULL;
    json_decref(description);
    if (!text)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot write the image's end");
    const struct image_finish f = {.device_state = im->state,
                                   .device_state_bytes = im->state_bytes,
                                   .description = text,
                                   .instant_ns = im->instant_ns};
    return image_writer_finish(im->output.writer, &f, e);
}

static int finish(struct import *im, struct error *e)
{
    int ret = output_drain(&im->output, e);
    if (!ret)
        ret = write_tail(im, e);
    TESTHOOK_POINT("import-finished");
    if (!ret)
        ret = memory_file_check_unchanged(&im->file, e);
    if (!ret && interrupts_seen(&im->interrupts))
        ret = -EINTR;
    if (!ret)
        ret = output_commit(&im->output, e);
    if (ret)
        return ret;
    im->finished_ns = clock_monotonic_ns();
    return 0;
}

static void add_number(json_t *o, const char *key, uint64_t n)
{
    json_object_set_new(o, key, json_integer((json_int_t)n));
}

static json_t *summarize(const struct import *im)
{
    json_t *o = json_object();
    add_number(o, "wall_ns", im->finished_ns - im->started_ns);
    output_add_sizes(&im->output, o);
    add_number(o, "read_bytes", im->file.read_bytes);
    add_number(o, "device_state_bytes", im->state_bytes);
    add_number(o, "buffer_peak_bytes", output_peak_bytes(&im->output));
    json_t *warnings = json_array();
    if (im->state_doubtful)
        json_array_append_new(warnings,
                              json_string("the vmstate file does not end with its own check sum: "
                                          "cut off, or of another version?"));
    if (im->file.bytes % IMAGE_CLUSTER_BYTES)
        json_array_append_new(warnings,
                              json_string("the memory file's length is no multiple of 16 KiB: "
                                          "'restore --listen' can serve no VM with it"));
    else if (im->file.bytes % (1 << 20))
        json_array_append_new(warnings, json_string("the memory file's length is no multiple of "
                                                    "1 MiB, as Firecracker's are: cut off?"));
    json_object_set_new(o, "warnings", warnings);
    output_add_identity(&im->output, o, im->instant_ns);
    return o;
}

/* ---- the child ---- */

static void tear_down(struct import *im)
{
    output_cancel(&im->output); /* after a commit: nothing to cancel */
    output_close(&im->output);
    memory_file_close(&im->file);
    free(im->state);
}

/* guardian.work */
static int work(void *opaque, struct guardian_board *board, json_t **summary, struct error *e)
{
    struct import *im = opaque;
    im->board = board;
    /* Nobody depends on us: a signal to the guardian may simply end us. */
    atomic_store(&board->finishing, true);
    int ret = interrupts_watch(&im->interrupts);
    if (ret)
        return error_set(e, VMSNAP_EXIT_FAILED, -ret, "cannot start");
    ret = prepare(im, e);
    if (!ret)
        ret = read_all(im, e);
    if (ret && ret != -EINTR && !e->exit_code)
        ret = output_explain(&im->output, ret, e);
    if (!ret)
        ret = finish(im, e);
    if (ret && im->interrupts.by)
        ret = interrupts_error(&im->interrupts, e);
    if (!ret)
        *summary = summarize(im);
    tear_down(im);
    return ret;
}

int import_run(const struct import_options *options, json_t **summary, struct error *e)
{
    struct import im = {.options = options, .file.fd = -1, .interrupts.fd = -1};
    im.started_ns = clock_monotonic_ns();
    struct guardian g = {.opaque = &im, .work = work};
    return guardian_run(&g, summary, e);
}
