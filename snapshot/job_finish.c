/* job_finish.c - the last step: the image's end, and its name; see job.h. */
#include "snapshot/job.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/json_text.h"
#include "common/publish.h"
#include "common/testhook.h"

static int make_hot_list(const struct capture *c, struct image_hot **out)
{
    uint64_t n = capture_n_hot(c);
    struct image_hot *hot = calloc(n ? n : 1, sizeof(*hot));
    if (!hot)
        return -ENOMEM;
    for (uint64_t i = 0; i < n; i++)
        hot[i] = (struct image_hot){.cluster = (uint64_t)c->hot[i].cluster_high << 32 |
                                               c->hot[i].cluster_low,
                                    .written = c->hot[i].written};
    *out = hot;
    return 0;
}

static int write_tail(struct job *j, struct error *e)
{
    struct image_finish f = {.gpa = j->source->gpa,
                             .n_gpa = j->source->n_gpa,
                             .n_hot = capture_n_hot(&j->capture),
                             .device_state = j->device_state,
                             .device_state_bytes = j->device_state_bytes,
                             .instant_ns = j->instant_ns};
    CLEANUP_FREE struct image_hot *hot = NULL;
    CLEANUP_FREE char *text = json_dumps(j->description, JSON_COMPACT);
    int ret = make_hot_list(&j->capture, &hot);
    if (ret || !text)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot write the image's end");
    f.hot = hot;
    f.description = text;
    f.poison = encoder_poison(j->output.encoder, &f.n_poison);
    f.pages_from_faults = atomic_load(&j->capture.clusters_from_faults) * IMAGE_CLUSTER_PAGES;
    return image_writer_finish(j->output.writer, &f, e);
}

static int write_file(int fd, const void *data, size_t len)
{
    for (size_t at = 0; at < len;) {
        ssize_t n = write(fd, (const char *)data + at, len - at);
        if (n < 0)
            return -errno;
        at += (size_t)n;
    }
    return 0;
}

/* The device state in a file of its own as well. The image holds it and has its name by now, so
 * what goes wrong is a warning. Its storage may hang: a signal ends the worker there, and the
 * guardian removes what has no name yet. */
static void publish_state(struct job *j)
{
    struct publish file;
    struct error e = {0};
    if (!j->options->state_path)
        return;
    atomic_store(&j->board->finishing, true);
    int ret = publish_open(&file, j->options->state_path, j->options->overwrite, &e);
    if (!ret) {
        if (!file.unnamed)
            snprintf(j->board->temporary, sizeof(j->board->temporary), "%s", file.temporary);
        TESTHOOK_POINT("firecracker-state-file");
        ret = write_file(file.fd, j->device_state, j->device_state_bytes);
        if (ret)
            error_set(&e, publish_exit_code(-ret), -ret, "cannot write %s", j->options->state_path);
        else
            ret = publish_commit(&file, &e);
        publish_close(&file);
        j->board->temporary[0] = '\0';
    }
    atomic_store(&j->board->finishing, false);
    if (ret)
        json_array_append_new(
            j->warnings,
            json_printed("no state file, which is in the image ('vmsnap export --format vmstate'): "
                         "%s",
                         e.message));
}

int job_finish(struct job *j, struct error *e)
{
    /* By the guardian's death, for one: nobody waits for the image any more. */
    if (job_interrupted(j))
        return -EINTR;
    atomic_store(&j->board->finishing, true);
    int ret = output_drain(&j->output, e);
    if (ret)
        return ret;
    ret = write_tail(j, e);
    if (ret)
        return ret;
    TESTHOOK_POINT("snapshot-finished");
    if (job_interrupted(j))
        return -EINTR;
    ret = output_commit(&j->output, e);
    if (ret)
        return ret;
    TESTHOOK_POINT("snapshot-committed");
    j->finished_ns = clock_monotonic_ns();
    publish_state(j);
    job_finish_huge(j);
    return 0;
}
