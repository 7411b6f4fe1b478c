/* defaults.h - values that several commands share when an option is not given. */
#ifndef VMSNAP_TOOLS_DEFAULTS_H
#define VMSNAP_TOOLS_DEFAULTS_H

#include <sched.h>

#define DEFAULT_TIMEOUT_MS 30000 /* --timeout */

/* --threads: the CPUs that this process may run on. */
static inline unsigned default_threads(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set))
        return 1; /* more CPUs than the set holds: start small */
    return (unsigned)CPU_COUNT(&set);
}

#endif
