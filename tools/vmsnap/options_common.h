/* options_common.h - the options that every command has; between options.c and help.c. */
#ifndef VMSNAP_TOOLS_OPTIONS_COMMON_H
#define VMSNAP_TOOLS_OPTIONS_COMMON_H

#include "tools/vmsnap/options.h"

extern const struct option_spec option_common_specs[];

#endif
