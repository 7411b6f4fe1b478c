/* qemu.h - what the files of the QEMU source share. Private to snapshot/source/qemu*.c. */
#ifndef VMSNAP_SNAPSHOT_SOURCE_QEMU_H
#define VMSNAP_SNAPSHOT_SOURCE_QEMU_H

#include <stdbool.h>
#include <stdint.h>

#include "snapshot/source/control.h"

struct source_qemu {
    struct source_control c; /* first */
    char *blocks_text;   /* `info ramblock` as it was: nothing may have changed at the instant */
    json_t *plugged;     /* what is plugged, as it was described; NULL before */
    bool state_saved;    /* since then plugged has not been compared */
    int64_t state_fdset; /* the number in QEMU of the device state's descriptor; -1 */
};

static inline struct source_qemu *source_qemu_of(struct source *s)
{
    return (struct source_qemu *)s;
}

/* source/qemu_pause.c: the operations around the instant, as in struct source_ops. */
int source_qemu_pause(struct source *s, bool *was_running, struct error *e);
int source_qemu_save_state(struct source *s, void **buf, size_t *len, struct error *e);
int source_qemu_resume(struct source *s, struct error *e);

/* What is plugged now: a new reference in *plugged, to be compared with json_equal(). */
int source_qemu_list_plugged(struct qmp *q, int timeout_ms, json_t **plugged, struct error *e);

#endif
