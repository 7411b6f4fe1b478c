#include "tools/vmsnap/hazard_option.h"

#include "common/qemu/hazards.h"
#include "tools/vmsnap/options.h"

const char *const *hazard_option_names(void)
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

void hazard_option_help(FILE *f)
{
    size_t count;
    const struct hazard_kind *kinds = hazard_kinds(&count);
    fputs("hazards (* can be allowed with --allow):\n", f);
    for (size_t i = 0; i < count; i++) {
        char left[64];
        snprintf(left, sizeof(left), "  %s%s", kinds[i].name, kinds[i].allowable ? " *" : "");
        option_print_entry(f, left, kinds[i].what);
    }
}
