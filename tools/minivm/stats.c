/*
 * stats.c - see stats.h. The guest only ever adds to its mailbox, and we only read it: what a reset
 * takes away is what had been there at that time.
 */
#include "stats.h"

#include <string.h>

#include "forkdump.h"

/* The middle of a bucket, in ticks. */
static uint64_t value_of(unsigned bucket)
{
    if (bucket < 1u << GUEST_SUB_BITS)
        return bucket;
    unsigned shift = (bucket >> GUEST_SUB_BITS) - 1;
    uint64_t sub = bucket & ((1u << GUEST_SUB_BITS) - 1);
    uint64_t low = ((1u << GUEST_SUB_BITS) + sub) << shift;
    return low + ((1ull << shift) >> 1);
}

/* What had been there at the last reset. */
static struct {
    struct guest_histogram write, read;
    uint64_t writes, ns; /* ns: when it was */
} before;

static void add(struct guest_histogram *sum, const struct guest_histogram *h)
{
    sum->count += h->count;
    if (h->max_ticks > sum->max_ticks)
        sum->max_ticks = h->max_ticks;
    for (unsigned i = 0; i < GUEST_BUCKETS; i++)
        sum->buckets[i] += h->buckets[i];
}

static void subtract(struct guest_histogram *h, const struct guest_histogram *old)
{
    h->count -= old->count;
    for (unsigned i = 0; i < GUEST_BUCKETS; i++)
        h->buckets[i] -= old->buckets[i];
}

/* Of all vCPUs, since the start. */
static uint64_t sum_up(const struct vm *vm, struct guest_histogram *write,
                       struct guest_histogram *read)
{
    uint64_t writes = 0;
    memset(write, 0, sizeof(*write));
    memset(read, 0, sizeof(*read));
    for (unsigned i = 0; i < vm->o.cpus; i++) {
        add(write, &vm->vcpus[i].mb->write);
        add(read, &vm->vcpus[i].mb->read);
        writes += vm->vcpus[i].mb->writes;
    }
    return writes;
}

/* A longest time can't be taken away: it begins anew. */
void stats_reset(struct vm *vm)
{
    before.writes = sum_up(vm, &before.write, &before.read);
    before.ns = vm_now_ns();
    for (unsigned i = 0; i < vm->o.cpus; i++)
        vm->vcpus[i].mb->write.max_ticks = vm->vcpus[i].mb->read.max_ticks = 0;
}

/* In nanoseconds, the value below which a fraction of all lie. */
static json_int_t quantile(const struct vm *vm, const struct guest_histogram *h, double fraction)
{
    uint64_t total = 0, seen = 0;
    for (unsigned i = 0; i < GUEST_BUCKETS; i++)
        total += h->buckets[i];
    uint64_t rank = (uint64_t)(fraction * (double)total);
    for (unsigned i = 0; i < GUEST_BUCKETS; i++) {
        seen += h->buckets[i];
        if (seen > rank) {
            uint64_t ticks = value_of(i) < h->max_ticks ? value_of(i) : h->max_ticks;
            return (json_int_t)vm_ticks_to_ns(vm, ticks);
        }
    }
    return 0;
}

static json_t *histogram(const struct vm *vm, const struct guest_histogram *h, bool full)
{
    json_t *buckets = json_array();
    for (unsigned i = 0; full && i < GUEST_BUCKETS; i++)
        if (h->buckets[i])
            json_array_append_new(buckets,
                                  json_pack("[II]", (json_int_t)vm_ticks_to_ns(vm, value_of(i)),
                                            (json_int_t)h->buckets[i]));
    return json_pack("{s:I,s:I,s:I,s:I,s:I,s:o}", "count", (json_int_t)h->count, "p50_ns",
                     quantile(vm, h, 0.5), "p99_ns", quantile(vm, h, 0.99), "p999_ns",
                     quantile(vm, h, 0.999), "max_ns", (json_int_t)vm_ticks_to_ns(vm, h->max_ticks),
                     "buckets", buckets);
}

/* The slices of a vCPU, old ones first: [start in ns, writes, longest write, longest gap]. Raises
 * *max_gap_ns. */
static json_t *slices(struct vcpu *v, uint64_t *max_gap_ns)
{
    const struct guest_mailbox *mb = v->mb;
    uint64_t offset = (uint64_t)v->tsc_offset, now = guest_tsc() + offset;
    uint64_t origin = v->vm->origin_tsc + offset;
    uint64_t last = (now - origin) / mb->slot_ticks;
    uint64_t first = last >= GUEST_SLOTS ? last - GUEST_SLOTS + 1 : 0;
    if (before.ns) {
        uint64_t then = (uint64_t)((double)(before.ns - v->vm->origin_ns) / v->vm->ns_per_tick);
        if (then / mb->slot_ticks > first)
            first = then / mb->slot_ticks;
    }
    json_t *list = json_array();
    for (uint64_t n = first; n <= last; n++) {
        struct guest_slot s = mb->slots[n % GUEST_SLOTS];
        if (s.number != n) /* nothing was written since then */
            s = (struct guest_slot){.number = n};
        uint64_t gap_ns = vm_ticks_to_ns(v->vm, s.max_gap_ticks);
        if (gap_ns > *max_gap_ns)
            *max_gap_ns = gap_ns;
        json_array_append_new(
            list,
            json_pack("[IIII]", (json_int_t)vm_tsc_to_ns(v, origin + n * mb->slot_ticks),
                      (json_int_t)s.writes, (json_int_t)vm_ticks_to_ns(v->vm, s.max_write_ticks),
                      (json_int_t)vm_ticks_to_ns(v->vm, s.max_gap_ticks)));
    }
    return list;
}

json_t *stats_get(struct vm *vm, bool full)
{
    static struct guest_histogram write, read; /* main thread alone */
    json_t *all = json_array();
    uint64_t writes = sum_up(vm, &write, &read) - before.writes, wrong = 0, gap = 0;
    subtract(&write, &before.write);
    subtract(&read, &before.read);
    vm_calibrate(vm);
    for (unsigned i = 0; i < vm->o.cpus; i++) {
        json_t *one = slices(&vm->vcpus[i], &gap);
        wrong += vm->vcpus[i].mb->wrong;
        if (full)
            json_array_append(all, one);
        json_decref(one);
    }
    return json_pack("{s:I,s:f,s:I,s:I,s:I,s:o,s:o,s:o,s:o}", "now_ns", (json_int_t)vm_now_ns(),
                     "tsc_mhz", 1e3 / vm->ns_per_tick, "writes", (json_int_t)writes, "wrong_pages",
                     (json_int_t)wrong, "max_gap_ns", (json_int_t)gap, "write",
                     histogram(vm, &write, full), "read", histogram(vm, &read, full), "fork_dump",
                     forkdump_status(), "series", all);
}
