#include "restore/vmm_kind.h"

const struct vmm_kind *vmm_kind_of(const json_t *description)
{
    (void)description;
    return &vmm_kind_qemu;
}
