/* explain.h - what -vv tells at the end of a restore: what each stage spent its time on. */
#ifndef VMSNAP_RESTORE_EXPLAIN_H
#define VMSNAP_RESTORE_EXPLAIN_H

#include "restore/serve/serve.h"

/* Two lines, nothing below -vv. Times are wall times: who has no CPU counts as busy; those of all
 * workers are added up. */
void explain_stages(const struct server_stats *stats);

#endif
