/* QEMU's table of operations. */
#include <stdlib.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/qemu/agent.h"
#include "common/qemu/machine.h"
#include "common/qemu/ramblock.h"
#include "restore/launch/qemu/files.h"
#include "restore/launch/qemu/generation_id.h"
#include "restore/launch/qemu/load.h"
#include "restore/launch/qemu/plan.h"
#include "restore/launch/qemu/refuse.h"
#include "restore/launch/qemu/stream.h"
#include "restore/launch/vmm_kind.h"

/* Says whether the guest can know that it is another one, and notes it for the object "running". */
static void compare_generation_id(const json_t *description, json_t *actual)
{
    enum generation_id id = generation_id_compare(description, actual);
    bool known = id == GENERATION_ID_RENEWED || id == GENERATION_ID_FIXED;
    json_object_set_new(actual, "generation_id_renewed",
                        known ? json_boolean(id == GENERATION_ID_RENEWED) : json_null());
    if (id == GENERATION_ID_FIXED)
        log_warn("the guest's generation id (vmgenid) is the one that it had: it can't tell that "
                 "it was restored; guid=auto on the command line gives it a new one");
    else
        log_info("%s", generation_id_words(id));
}

static int qemu_compare(json_t **actual, const json_t *description, struct qmp *q,
                        const struct target *t, int timeout_ms, struct error *e)
{
    int rc = machine_describe(actual, q, t, timeout_ms, e);
    if (rc == 0)
        rc = machine_compare(description, *actual, e);
    if (rc == 0)
        compare_generation_id(description, *actual);
    return rc;
}

static int qemu_find_memory(struct region_set *out, const json_t *actual, struct qmp *q,
                            const struct target *t, int timeout_ms, struct error *e)
{
    (void)actual;
    return ramblocks_find(out, q, t, timeout_ms, e);
}

static int qemu_load(struct qmp *q, const struct target *t, const struct image *img,
                     const json_t *description, int timeout_ms, struct error *e)
{
    uint64_t state_bytes;
    uint32_t n_regions;
    const void *state = image_device_state(img, &state_bytes);
    const struct image_region *regions = image_regions(img, &n_regions);
    const char *machine = json_string_value(json_object_get(description, "machine"));
    CLEANUP_FREE void *stream = NULL;
    size_t len;
    int rc = stream_build(&stream, &len, state, state_bytes, machine, regions, n_regions, e);
    return rc ? rc : load_state(q, t, stream, len, timeout_ms, e);
}

const struct vmm_kind vmm_kind_qemu = {
    .name = "qemu",
    .plan = qemu_plan,
    .refuse = qemu_refuse,
    .list_hazards = qemu_list_hazards,
    .files_exist = qemu_files_exist,
    .add_private = qemu_add_private,
    .compare = qemu_compare,
    .find_memory = qemu_find_memory,
    .load = qemu_load,
    .resume = load_continue,
    .open_agent = agent_open,
};
