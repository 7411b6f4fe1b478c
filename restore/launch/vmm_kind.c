#include "restore/launch/vmm_kind.h"

#include "common/vmm/vmm_control.h"

const struct vmm_kind *vmm_kind_of(const json_t *description)
{
    return vmm_control_describes(description) ? &vmm_kind_control : &vmm_kind_qemu;
}
