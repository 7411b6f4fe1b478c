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
#ifndef VMSNAP_COMMON_LAUNCH_H
#define VMSNAP_COMMON_LAUNCH_H

#include <jansson.h>

#include "common/error.h"
#include "common/target/target.h"

/* Looks for descriptor numbers in the value that follows `option` on the line (a word with one
 * dash, or ""), and adds them to `fds`. 0 or -errno. */
typedef int launch_scan(json_t *fds, const struct target *t, const char *option, const char *value);

/* For a VMM of which no more is known: "fd:3" and, anywhere, "/dev/fd/3", "/proc/self/fd/3". */
launch_scan launch_scan_paths;

/* For a launch_scan: adds the numbers of "3" or "3:4:5". A value that is no number is a name, and
 * no descriptor that was inherited: nothing is added. */
int launch_add_fds(json_t *fds, const struct target *t, const char *option, const char *value);

/* *out is a new reference. Reads /proc; not in the pause. */
int launch_describe(json_t **out, const struct target *t, launch_scan *scan, struct error *e);

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
