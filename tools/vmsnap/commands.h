/* commands.h - the subcommands, each in its own cmd_NAME.c. */
#ifndef VMSNAP_TOOLS_COMMANDS_H
#define VMSNAP_TOOLS_COMMANDS_H

#include "tools/vmsnap/options.h"

extern const struct command command_check;
extern const struct command command_restore;
extern const struct command command_snapshot;

#endif
