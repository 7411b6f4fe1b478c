/* options.h - the command line of minivm. */
#ifndef MINIVM_OPTIONS_H
#define MINIVM_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "guest.h"

enum memory_kind { MEMORY_ANON, MEMORY_THP, MEMORY_MEMFD, MEMORY_HUGETLBFS };
enum accel_wish { ACCEL_AUTO, ACCEL_KVM, ACCEL_THREADS };

struct options {
    uint64_t memory_bytes, populate_bytes;
    uint64_t hot_bytes; /* 0: no hot set */
    uint64_t rate;      /* writes per second and vCPU; 0: as fast as it can */
    unsigned cpus;
    enum memory_kind kind;
    enum accel_wish accel;
    enum guest_pattern pattern;
    const char *control, *incoming, *report; /* paths, or NULL */
};

extern const char *const memory_kind_names[];

/* Fills `o`; on a mistake it prints what is wrong and returns false. Ends the process for --help.
 */
bool options_parse(struct options *o, int argc, char **argv);

#endif
