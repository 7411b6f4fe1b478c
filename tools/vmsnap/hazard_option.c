#include "tools/vmsnap/hazard_option.h"

#include <stdbool.h>

#include "common/hazards.h"
#include "restore/launch/refuse.h"
#include "tools/vmsnap/options.h"

/* One line of a list, wherever it comes from. */
static void print_kind(FILE *f, const char *name, bool allowable, const char *what)
{
    char left[64];
    snprintf(left, sizeof(left), "  %s%s", name, allowable ? " *" : "");
    option_print_entry(f, left, what);
}

const char *const *hazard_option_snapshot_names(void)
{
    static const char *names[HAZARD_MAX + 1];
    size_t count, n = 0;
    const struct hazard_kind *kinds = hazard_kinds(&count);
    for (size_t i = 0; i < count && n < HAZARD_MAX; i++)
        if (kinds[i].allowable)
            names[n++] = kinds[i].name;
    names[n] = NULL;
    return names;
}

const char *const *hazard_option_restore_names(void)
{
    static const char *names[HAZARD_MAX + 1];
    size_t count, n = 0;
    const struct restore_hazard_kind *kinds = restore_hazard_kinds(&count);
    for (size_t i = 0; i < count && n < HAZARD_MAX; i++)
        if (kinds[i].allowable)
            names[n++] = kinds[i].name;
    names[n] = NULL;
    return names;
}

void hazard_option_help(FILE *f)
{
    size_t count;
    const struct hazard_kind *kinds = hazard_kinds(&count);
    fputs("hazards of a snapshot (* --allow takes it):\n", f);
    for (size_t i = 0; i < count; i++)
        print_kind(f, kinds[i].name, kinds[i].allowable, kinds[i].what);
    const struct restore_hazard_kind *of_restore = restore_hazard_kinds(&count);
    fputs("\nhazards of a restore (* --allow takes it):\n", f);
    for (size_t i = 0; i < count; i++)
        print_kind(f, of_restore[i].name, of_restore[i].allowable, of_restore[i].what);
}
