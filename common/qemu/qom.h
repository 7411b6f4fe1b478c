/*
 * qom.h - questions to a running QEMU under one deadline: commands without a return value of
 * interest have no place here. Private to common/qemu.
 */
#ifndef VMSNAP_COMMON_QEMU_QOM_H
#define VMSNAP_COMMON_QEMU_QOM_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/json_text.h"
#include "common/qmp.h"

struct qom {
    struct qmp *q;
    uint64_t deadline_ns;
};

struct qom qom_within(struct qmp *q, int timeout_ms);

/* A command; `arguments` (may be NULL) is stolen. *result: a new reference. */
int qom_ask(struct qom *m, const char *command, json_t *arguments, json_t **result,
            struct error *e);

/* qom-get. */
int qom_get(struct qom *m, const char *path, const char *property, json_t **value, struct error *e);

/* The same; *value is NULL, and 0 is returned, when there is no such object or property (other
 * QEMU version, other device). */
int qom_get_if_any(struct qom *m, const char *path, const char *property, json_t **value,
                   struct error *e);

/* qom-list: an array of {name, type}; empty when there is no such object. */
int qom_list(struct qom *m, const char *path, json_t **list, struct error *e);

#endif
