#include "restore/launch/vmm_kind.h"

#include <errno.h>

#include "common/vmm/firecracker.h"
#include "common/vmm/vmm_control.h"

const struct vmm_kind *vmm_kind_of(const json_t *description)
{
    return vmm_control_describes(description) ? &vmm_kind_control : &vmm_kind_qemu;
}

int vmm_kind_check_started(const json_t *description, const char *image_path, struct error *e)
{
    if (!firecracker_describes(description))
        return 0;
    error_set(e, VMSNAP_EXIT_MISMATCH, 0,
              "%s is of a Firecracker, which starts its VM itself and asks for its memory",
              image_path);
    error_hint(e,
               "run 'vmsnap restore --listen SOCK %s', give Firecracker's PUT /snapshot/load SOCK "
               "as mem_backend of type Uffd, and the vmstate file ('vmsnap export --format "
               "vmstate')",
               image_path);
    return -EINVAL;
}
