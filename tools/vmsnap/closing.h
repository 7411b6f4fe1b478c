/* closing.h - the last line that a person reads, made from a command's summary object. */
#ifndef VMSNAP_TOOLS_CLOSING_H
#define VMSNAP_TOOLS_CLOSING_H

#include <jansson.h>

/*
 * The line of a snapshot, which people paste into tickets: it leads with the pause.
 *
 *     paused 3.1 ms (KVM); 4.0 GiB RAM, 1.1 GiB stored (3.6:1) in 3.9 s; 2210 write faults,
 *     p99 71 us; guest running
 *
 * Through report_closing().
 */
void closing_snapshot(const json_t *summary);

/* The line of an import:
 *     4.0 GiB RAM, 1.1 GiB stored (3.6:1) in 3.9 s; vmstate of 64 KiB
 */
void closing_import(const json_t *summary);

/* "KVM", "TCG": the accelerator of a result, as people write it. Valid as long as the object. */
const char *closing_accelerator(const json_t *summary);

#endif
