/*
 * firecracker_api.h - what vmsnap asks of a Firecracker over its API socket. Facts are from its
 * source and its OpenAPI file (1.0 to 1.16): its replies to what it can't do are 400 with a text,
 * to what it did 204 or 200.
 */
#ifndef VMSNAP_COMMON_VMM_FIRECRACKER_API_H
#define VMSNAP_COMMON_VMM_FIRECRACKER_API_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/hazards.h"
#include "common/http.h"

enum firecracker_state { FIRECRACKER_RUNNING, FIRECRACKER_PAUSED, FIRECRACKER_NOT_STARTED };

struct firecracker_info {
    enum firecracker_state state;
    char id[128], version[64]; /* printable; may be empty */
};

/* Exit code 10: what answers makes no sense. */
int firecracker_get_info(struct http *h, int timeout_ms, struct firecracker_info *info,
                         struct error *e);

/* Exit codes 10, 11: a VM that is not started can't be snapshotted. */
int firecracker_check_state(const struct firecracker_info *info, struct error *e);

/* GET, an object: *out is a new reference; NULL where this Firecracker has no such thing (4xx). */
int firecracker_get(struct http *h, const char *target, int timeout_ms, json_t **out,
                    struct error *e);

/* PATCH /vm to "Paused" or "Resumed". */
int firecracker_set_state(struct http *h, const char *state, int timeout_ms, struct error *e);

/* The text of a reply that says no; "" for none. Control characters are left out. */
void firecracker_fault(const struct http_reply *reply, char *text, size_t size);

/* GET /machine-config: bytes of memory, bounded, whole MiB. The object as well: new reference. */
int firecracker_get_memory(struct http *h, int timeout_ms, json_t **machine, uint64_t *bytes,
                           struct error *e);

/*
 * Hazards that the kernel shows, and what GET /vm/config says: writable disks, a balloon,
 * vhost-user disks, pluggable memory. *config (new reference, or NULL where it is not told): as it
 * was asked for.
 */
int firecracker_find_hazards(struct hazard *out, size_t *count, const struct hazard_scope *scope,
                             const json_t *config, struct error *e);

#endif
