/* named_files.h - no file of a command line is named twice where one of the two is written. */
#ifndef VMSNAP_TOOLS_NAMED_FILES_H
#define VMSNAP_TOOLS_NAMED_FILES_H

#include "tools/vmsnap/options.h"

/*
 * Looks at all options and operands whose table says that they name a file (`file`). Two that are
 * one file (by device and inode, or by directory and name where there is none yet) are a usage
 * error if one of them is written. Devices and pipes may be named as often as one likes. 0 or
 * -EINVAL.
 */
int named_files_check(const struct command *command, const struct command_line *line,
                      struct error *e);

#endif
