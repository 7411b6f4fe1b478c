/*
 * resident.h - which parts of a file the page cache holds. The file is mapped for the question
 * alone (mincore(2)) and never touched: it may be cut or hang.
 */
#ifndef VMSNAP_RESTORE_RESIDENT_H
#define VMSNAP_RESTORE_RESIDENT_H

#include <stdbool.h>
#include <stdint.h>

struct resident {
    char *map; /* NULL: it can't be told */
    uint64_t map_bytes;
};

/* Whether the file can be read without waiting (preadv2(RWF_NOWAIT)). Where it can't (NFS, FUSE)
 * any call may ask a server that does not answer. */
bool resident_has_nowait(int fd);

/* Of `bytes` of the file, whose length is not asked for. What can't be mapped, or may hang, can't
 * be told of: no error. */
void resident_open(struct resident *r, int fd, uint64_t bytes);
void resident_close(struct resident *r);

static inline bool resident_can_tell(const struct resident *r)
{
    return r->map;
}

/* Whether all of [offset, offset + bytes) is there. To who neither owns nor may write the file the
 * kernel says that all is (mincore(2)). Any thread. */
bool resident_has(const struct resident *r, uint64_t offset, uint64_t bytes);

#endif
