/* commands.h - the subcommands, each in its own cmd_NAME.c. */
#ifndef VMSNAP_TOOLS_COMMANDS_H
#define VMSNAP_TOOLS_COMMANDS_H

#include "tools/vmsnap/options.h"

extern const struct command command_check;
extern const struct command command_export;
extern const struct command command_import;
extern const struct command command_info;
extern const struct command command_restore;
extern const struct command command_snapshot;
extern const struct command command_verify;

#endif
