#include "common/vmm/firecracker.h"

#include <string.h>

#include "common/json_text.h"

#define NAME "firecracker"

/* It runs on KVM alone, and only a paused VM can be snapshotted (its API refuses otherwise). */
json_t *firecracker_describe(void)
{
    return json_pack("{s:s, s:s, s:s, s:s}", "vmm", NAME, "vm_name", "", "status", "paused",
                     "accelerator", "kvm");
}

bool firecracker_describes(const json_t *description)
{
    return strcmp(json_text(description, "vmm", ""), NAME) == 0;
}
