/* file.h - between sink/file.c and sink/pipe.c. */
#ifndef VMSNAP_COMMON_SINK_FILE_H
#define VMSNAP_COMMON_SINK_FILE_H

#include "common/sink/sink.h"

/* sink_open_fd() of a regular file: written where it stands, flushed at commit. */
int sink_open_redirect(struct sink **out, int fd, const char *name,
                       const struct sink_options *options, struct error *e);

#endif
