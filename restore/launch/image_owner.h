/* image_owner.h - whether a command line that came with an image may be run. */
#ifndef VMSNAP_RESTORE_IMAGE_OWNER_H
#define VMSNAP_RESTORE_IMAGE_OWNER_H

#include "common/error.h"

/*
 * A recorded line is code: it is run only from an image that root or the caller owns and nobody
 * else can write, in directories of which the same holds (or that are sticky, as /tmp). `fd`: the
 * open image, so that what is checked is what was read. 0, or exit code 14.
 */
int image_owner_check(int fd, const char *path, struct error *e);

#endif
