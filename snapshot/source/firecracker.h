/* firecracker.h - what the files of the Firecracker source share. Private to
 * snapshot/source/firecracker*.c; source_firecracker_open() is in source.h. */
#ifndef VMSNAP_SNAPSHOT_SOURCE_FIRECRACKER_H
#define VMSNAP_SNAPSHOT_SOURCE_FIRECRACKER_H

#include "common/http.h"
#include "common/vmm/firecracker_api.h"
#include "snapshot/source/control.h"
#include "snapshot/source/firecracker_hold.h"

struct source_firecracker {
    struct source_control c; /* first; without a connection: each request has its own */
    struct http *http;
    struct firecracker_info info;
    json_t *machine; /* GET /machine-config */
    struct firecracker_hold hold;
    bool was_left; /* it was paused when we came, and one that a killed vmsnap held was let go */
};

static inline struct source_firecracker *source_firecracker_of(struct source *s)
{
    return (struct source_firecracker *)s;
}

/* source/firecracker_pause.c: the operations around the instant, as in struct source_ops. */
int source_firecracker_pause(struct source *s, bool *was_running, struct error *e);
int source_firecracker_save_state(struct source *s, void **buf, size_t *len, struct error *e);
int source_firecracker_resume(struct source *s, struct error *e);
int source_firecracker_resume_after_death(struct source *s, struct error *e);

/* Whoever closes the source last: a VMM that a dead worker left held is let go. */
void source_firecracker_let_go(struct source_firecracker *s);

#endif
