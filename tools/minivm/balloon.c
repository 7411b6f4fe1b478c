/* balloon.c - see balloon.h. */
#include "balloon.h"

#define TURN_MS 5
#define MAX_RANGE 16u

struct balloon_pages balloon_look(const struct vm *vm)
{
    const struct guest_state *s = memory_state(&vm->memory, 0);
    return (struct balloon_pages){
        .pages = s->balloon_pages,
        .discarded = s->discarded,
        .reused = __atomic_load_n(&s->reused, __ATOMIC_ACQUIRE),
    };
}

int64_t balloon_discard(struct vm *vm, uint64_t pages)
{
    struct guest_state *s = memory_state(&vm->memory, 0);
    uint64_t done = 0;
    while (done < pages && s->balloon_pages) {
        struct balloon_pages b = balloon_look(vm);
        uint64_t at = b.discarded % b.pages, number = s->balloon_first + at;
        uint64_t range = 1 + guest_mix(b.discarded) % MAX_RANGE;
        const uint64_t limits[] = {pages - done, b.reused + b.pages - b.discarded, b.pages - at,
                                   memory_pages_on(&vm->memory, number)};
        for (unsigned i = 0; i < sizeof(limits) / sizeof(limits[0]); i++)
            range = range < limits[i] ? range : limits[i];
        if (range == 0)
            break;
        int r = memory_discard(&vm->memory, number, range);
        if (r < 0)
            return r;
        __atomic_store_n(&s->discarded, b.discarded + range, __ATOMIC_RELEASE);
        done += range;
    }
    return (int64_t)done;
}

int balloon_turn(struct vm *vm)
{
    uint64_t now = vm_now_ns(), rate = vm->o.balloon_rate;
    if (rate == 0 || vm->status != VM_RUNNING) {
        vm->balloon_ns = 0;
        return -1;
    }
    if (vm->balloon_ns == 0) /* it has just begun to run */
        vm->balloon_ns = now;
    uint64_t due = (uint64_t)((double)(now - vm->balloon_ns) * (double)rate / 1e9);
    if (due > 0) { /* what the guest is not ready for is not made up for */
        balloon_discard(vm, due);
        vm->balloon_ns = now;
    }
    return TURN_MS;
}
