/* format.h - how numbers are written for people: "4.0 GiB", "3.1 ms". */
#ifndef VMSNAP_COMMON_FORMAT_H
#define VMSNAP_COMMON_FORMAT_H

#include <stdint.h>

#define FORMAT_MAX 32

/* Each fills `out` (FORMAT_MAX bytes) and returns it, so that it can stand in an argument list.
 * Any thread. */
char *format_bytes(char *out, uint64_t bytes); /* "512 B", "3.4 KiB", "64 MiB", "4.0 GiB" */
char *format_duration(char *out,
                      uint64_t ns); /* "71 us", "3.1 ms", "437 ms", "3.9 s", "2 min 05 s" */
char *format_instant(char *out, uint64_t real_ns); /* RFC 3339, UTC, milliseconds */

#endif
