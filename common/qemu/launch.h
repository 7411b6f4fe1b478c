/*
 * launch.h - how a process was started, read from /proc: what is needed to start it again. Recorded
 * in the image as "launch":
 *
 *   argv         array of texts
 *   executable   what /proc/PID/exe points to
 *   cwd          working directory
 *   uid, gid     effective ones; groups: supplementary ones, ascending
 *   environment  only the names of launch_environment_names()
 *   fds          descriptors that argv names: [{option, fd, target}]; they are inherited, and must
 *                be there again
 *
 * argv and names of files are bytes to the kernel, text to JSON: bytes that are not UTF-8 refuse
 * the snapshot, since they could not be given back.
 */
#ifndef VMSNAP_COMMON_QEMU_LAUNCH_H
#define VMSNAP_COMMON_QEMU_LAUNCH_H

#include <jansson.h>

#include "common/error.h"
#include "common/target.h"

/* *out is a new reference. Reads /proc; not in the pause. */
int launch_describe(json_t **out, const struct target *t, struct error *e);

/*
 * The environment that a VMM's start depends on, NULL-terminated. Short on purpose: an environment
 * holds secrets, and belongs to a login session.
 *   HOME, XDG_RUNTIME_DIR  where PulseAudio, PipeWire, SPICE, libssh look for sockets and keys
 *   PATH                   helpers started by name (exec:, network scripts)
 *   QEMU_AUDIO_DRV         audio backend of QEMU before 8.2
 *   QEMU_MODULE_DIR        loadable parts of QEMU in a place of their own
 *   TMPDIR                 temporary files
 *   TZ                     -rtc base=localtime
 */
const char *const *launch_environment_names(void);

#endif
