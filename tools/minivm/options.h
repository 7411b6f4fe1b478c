/* options.h - the command line of minivm. */
#ifndef MINIVM_OPTIONS_H
#define MINIVM_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "guest.h"

enum memory_kind { MEMORY_ANON, MEMORY_THP, MEMORY_MEMFD, MEMORY_HUGETLBFS, MEMORY_HUGETLB };
/* What names the page size in the handoff, by version (uffd.h). */
enum handoff_form { HANDOFF_PAGE_SIZE, HANDOFF_PAGE_SIZE_KIB, HANDOFF_NONE };
enum accel_wish { ACCEL_AUTO, ACCEL_KVM, ACCEL_THREADS };

struct options {
    uint64_t memory_bytes, populate_bytes;
    uint64_t hot_bytes;                   /* 0: no hot set */
    uint64_t rate;                        /* writes per second and vCPU; 0: as fast as it can */
    uint64_t balloon_bytes, balloon_rate; /* rate: pages per second; 0: on command alone */
    unsigned cpus;
    enum memory_kind kind;
    enum accel_wish accel;
    enum guest_pattern pattern;
    unsigned regions;
    enum handoff_form handoff_form;
    bool handoff_early_empty, handoff_closes, no_remove_events, paused, seccomp;
    bool skewed;         /* regions begin 4 KiB behind a multiple of 2 MiB */
    bool plain_mappings; /* where mmap() puts them, and no advice: as Firecracker's */
    /* Paths, or NULL. */
    const char *control, *api, *incoming, *report, *vmstate, *uffd_backend, *memory_file;
};

extern const char *const memory_kind_names[];

/* The sizes of all regions but the last are multiples of it. */
uint64_t options_region_unit(const struct options *o);

/* Do they describe a machine? Prints what does not. */
bool options_fit(const struct options *o);

/* Fills `o`; on a mistake it prints what is wrong and returns false. Ends the
 * process for --help. */
bool options_parse(struct options *o, int argc, char **argv);

#endif
