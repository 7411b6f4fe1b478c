/* hazard_option.h - `--allow HAZARD`, and the published lists of hazards in the help. */
#ifndef VMSNAP_TOOLS_HAZARD_OPTION_H
#define VMSNAP_TOOLS_HAZARD_OPTION_H

#include <stdio.h>

/* The names that --allow takes, NULL-terminated. For option_spec.choices_of. */
const char *const *hazard_option_snapshot_names(void);
const char *const *hazard_option_restore_names(void);

/* Both lists, of a snapshot and of a restore, for command.more_help. */
void hazard_option_help(FILE *f);

#endif
