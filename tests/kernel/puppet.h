/*
 * puppet.h - a process with one piece of memory, that does what the test tells it: map, write,
 * read, advise. A test can leave it waiting in a userfault and resolve that.
 */
#ifndef VMSNAP_TESTS_PUPPET_H
#define VMSNAP_TESTS_PUPPET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/target/region.h"
#include "common/target/target.h"

enum puppet_memory {
    PUPPET_ANON,
    PUPPET_MEMFD, /* shared */
    PUPPET_SHARED_ANON,
    PUPPET_PRIVATE_TMPFS, /* MAP_PRIVATE of a file in shared memory */
    PUPPET_HUGE_SHARED,   /* a memfd of huge pages */
    PUPPET_HUGE_PRIVATE,  /* private, of huge pages */
    PUPPET_N_MEMORIES,
};

extern const char *const puppet_memory_names[PUPPET_N_MEMORIES];

struct puppet;

/* Starts one with `bytes` of memory. `filled(i)`: page i of it (4 KiB) has content before it is
 * mapped (PRIVATE_TMPFS: in the file) or written once (all others); may be NULL. Its content is
 * puppet_pattern(i). NULL: no such memory here (no huge pages). */
struct puppet *puppet_start(enum puppet_memory memory, size_t bytes, bool (*filled)(size_t page));

pid_t puppet_pid(const struct puppet *p);
uint64_t puppet_address(const struct puppet *p);
int puppet_fd(const struct puppet *p); /* of its memory, in the puppet; -1 */
const struct target *puppet_target(const struct puppet *p);

/* Opens it as a region: classified from its mappings. */
int puppet_region(const struct puppet *p, struct region *r, struct error *e);

/* The byte that every byte of page i is filled with; not 0. */
uint8_t puppet_pattern(size_t page);

/* Each starts an action and waits up to 5 s for its end; false: it still waits (for a userfault).
 * *_begin does not wait. */
bool puppet_write(struct puppet *p, size_t page, uint8_t value); /* one byte, in its middle */
bool puppet_read(struct puppet *p, size_t page, uint8_t *value);
bool puppet_madvise(struct puppet *p, size_t page, size_t n_pages, int advice);
void puppet_write_begin(struct puppet *p, size_t page, uint8_t value);
void puppet_read_begin(struct puppet *p, size_t page);
void puppet_madvise_begin(struct puppet *p, size_t page, size_t n_pages, int advice);
/* *_write_all: one byte in each page, from the first to the last. */
/* Fills whole pages with their pattern. */
bool puppet_fill(struct puppet *p, size_t page, size_t n_pages);
void puppet_write_all_begin(struct puppet *p, size_t page, size_t n_pages, uint8_t value);
bool puppet_wait(struct puppet *p, uint8_t *value); /* for the end of what was begun */
bool puppet_is_done(const struct puppet *p);
int puppet_result(const struct puppet *p); /* 0 or -errno of the last madvise */

#endif
