/* check.h - whether an image could be restored here, without starting anything. */
#ifndef VMSNAP_RESTORE_CHECK_H
#define VMSNAP_RESTORE_CHECK_H

#include <stdbool.h>

#include "common/error.h"

/* One thing that was looked at. */
struct restore_check_item {
    const char *name; /* stable; of a hazard: its published name */
    bool ok;
    int exit_code;      /* what a restore would end with if not ok; 0: only told */
    const char *allow;  /* the word for --allow, or NULL */
    const char *reason; /* what was seen, and what to do */
};

/*
 * Looks at everything that `vmsnap restore IMAGE [-- VMM ARG...]` looks at before it starts the
 * VMM, and says each through `item`. What shows only in the started VMM (the machine, the CPU as
 * the guest sees it) is left to the restore. 0, or -errno when it could not look.
 */
int restore_check(const char *image_path, char *const *vmm_argv,
                  void (*item)(void *opaque, const struct restore_check_item *item), void *opaque,
                  struct error *e);

#endif
