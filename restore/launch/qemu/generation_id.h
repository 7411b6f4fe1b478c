/*
 * generation_id.h - vmgenid: the device that tells a guest that it is not the one that it was. It
 * shows 128 bits, and interrupts when they have changed; Linux from 5.18 on then seeds its random
 * generator anew, and a Windows domain controller takes a new identity.
 *
 * The id is a property of the device, fixed when QEMU starts: "auto", the default, is a new one
 * each time. It is no part of the device state: once QEMU has loaded a state it writes its own id
 * into the guest's memory and interrupts it (seen with QEMU 7.2: tests/qemu/twins.py).
 */
#ifndef VMSNAP_RESTORE_QEMU_GENERATION_ID_H
#define VMSNAP_RESTORE_QEMU_GENERATION_ID_H

#include <jansson.h>
#include <stdbool.h>

enum generation_id {
    GENERATION_ID_NONE,    /* the VM has no such device */
    GENERATION_ID_RENEWED, /* each start of the command line makes a new one */
    GENERATION_ID_FIXED,   /* the command line names one */
    GENERATION_ID_UNKNOWN, /* it has the device, and its command line does not say so */
};

/* What a start of `argv` gives; NULL: of the recorded line. `description`: of a QEMU. */
enum generation_id generation_id_of(const json_t *description, char *const *argv);

/* "none", "renewed", "fixed", "unknown". */
const char *generation_id_name(enum generation_id id);

/* The same as a sentence that says what it means. */
const char *generation_id_words(enum generation_id id);

/* Of a VM that was restored: NONE, RENEWED, FIXED (it is the recorded one), or UNKNOWN. */
enum generation_id generation_id_compare(const json_t *recorded, const json_t *actual);

#endif
