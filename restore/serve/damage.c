#include "restore/serve/damage.h"

#include <errno.h>
#include <inttypes.h>

#include "common/kernel.h"

int damage_check_kernel(bool poison, struct error *e)
{
    if (!poison || kernel_probe()->poison)
        return 0;
    error_set(e, VMSNAP_EXIT_KERNEL, ENOTSUP,
              "this kernel can't poison memory (UFFDIO_POISON, Linux 6.6), which --on-damage "
              "poison needs");
    error_hint(e, "without it a guest waits at what is damaged, which this kernel can do");
    return -ENOTSUP;
}

void damage_hint(const struct answerer *a, struct error *e)
{
    if (a->poisons)
        error_hint(e, "that memory is poisoned: with QEMU and KVM the guest gets a machine check "
                      "if it touches it, else (Firecracker, TCG) the VMM is ended by SIGBUS; "
                      "'vmsnap verify' lists what "
                      "else is damaged");
    else
        error_hint(e,
                   "the guest waits when it touches that memory; with a sound copy of the image "
                   "'vmsnap restore --resume %d IMAGE' goes on; 'vmsnap verify' lists what else is "
                   "damaged",
                   (int)a->target->pid);
}

/* A fault looks at the first cluster of its unit alone (a huge page is put in as a whole or not at
 * all), so that one must say it too. Where it is poisoned the whole unit is, at once. */
static void mark_unit(struct answerer *a, const struct block *b, uint64_t cluster)
{
    uint64_t first = block_unit_of(b, cluster);
    if (!a->poisons && page_state_get(a->state, first) == CLUSTER_PENDING)
        page_state_damage(a->state, first);
}

/* Where somebody has come to damage the guest waits from then on, whatever else turns up. */
static enum guest_state guest_of(struct answerer *a, bool waits_now, bool for_good)
{
    a->guest_waits |= waits_now && for_good;
    return waits_now || a->guest_waits ? GUEST_WAITING : GUEST_RUNNING;
}

void damage_report(struct answerer *a, const struct block *b, uint64_t cluster, int err,
                   const char *cause, bool guest_waits)
{
    bool known = page_state_get(a->state, cluster) == CLUSTER_DAMAGED ||
                 !page_state_damage(a->state, cluster);
    mark_unit(a, b, cluster);
    if (known)
        return;
    uint64_t before = a->counts.clusters_damaged++;
    if (before > DAMAGE_NAMED_MAX)
        return;
    struct error e = {.guest = guest_of(a, guest_waits && !a->poisons, true)};
    a->said_wait |= guest_waits;
    enum vmsnap_exit code = err == -EBADMSG ? VMSNAP_EXIT_IMAGE : VMSNAP_EXIT_FAILED;
    if (before == DAMAGE_NAMED_MAX)
        error_set(&e, code, 0, "more than %u clusters can't be restored: the others are not named",
                  DAMAGE_NAMED_MAX);
    else
        error_set(&e, code, 0, "memory block '%s' at offset 0x%" PRIx64 " can't be restored: %s",
                  b->region.name, block_cluster_offset(b, cluster), cause);
    damage_hint(a, &e);
    trouble_add(a->troubles, &e);
}

void damage_report_wait(struct answerer *a, const struct block *b, uint64_t offset)
{
    struct error e = {.guest = GUEST_WAITING};
    if (a->said_wait)
        return;
    a->said_wait = a->guest_waits = true;
    error_set(&e, VMSNAP_EXIT_IMAGE, 0,
              "the guest waits for memory block '%s' at offset 0x%" PRIx64
              ", which can't be restored",
              b->region.name, offset);
    damage_hint(a, &e);
    trouble_add(a->troubles, &e);
}

/* Notes that it is named. False: it has been, or too many were. */
static bool name_unread(struct answerer *a, uint64_t cluster)
{
    for (unsigned i = 0; i < a->n_unread_named; i++)
        if (a->unread_named[i] == cluster)
            return false;
    if (a->n_unread_named == DAMAGE_NAMED_MAX)
        return false;
    a->unread_named[a->n_unread_named++] = cluster;
    return true;
}

void damage_report_unread(struct answerer *a, const struct block *b, uint64_t cluster,
                          const char *cause, bool guest_waits)
{
    bool news = guest_waits && !a->said_unread_wait;
    if (!name_unread(a, cluster) && !news)
        return;
    a->said_unread_wait |= guest_waits;
    struct error e = {.guest = guest_of(a, guest_waits, false)};
    error_set(&e, VMSNAP_EXIT_FAILED, 0,
              "memory block '%s' at offset 0x%" PRIx64 " can't be read now: %s", b->region.name,
              block_cluster_offset(b, cluster), cause);
    error_hint(&e,
               "it is tried again all the time, and whoever touches it waits; 'vmsnap restore "
               "--resume %d IMAGE' goes on with another copy of the image",
               (int)a->target->pid);
    trouble_add(a->troubles, &e);
}

enum answer damage_poison(struct answerer *a, const struct block *b, uint64_t cluster)
{
    uint64_t offset = block_cluster_offset(b, cluster), poisoned;
    uint64_t start = offset - offset % b->unit_bytes;
    uint64_t len = block_clip(b, start, b->unit_bytes);
    int rc = install_poison(&a->installer, b, start, len, &poisoned);
    a->counts.pages_poisoned += poisoned / IMAGE_PAGE_BYTES;
    enum answer answer = answer_settled(a, b, start, len, rc);
    for (uint64_t at = 0; answer == ANSWERED && rc == 0 && at < len; at += IMAGE_CLUSTER_BYTES)
        page_state_set(a->state, block_cluster_at(b, start + at), CLUSTER_POISONED);
    return answer;
}
