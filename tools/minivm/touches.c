/*
 * touches.c - see touches.h. What the guest logs is logged by a vCPU alone: of several vCPUs it is
 * number 0 that is told.
 */
#include "touches.h"

/* The TSC of a write; 0: it was not done yet, or is not logged. */
static uint64_t tsc_of(const struct guest_mailbox *mb, uint64_t number)
{
    uint64_t strided = (number + GUEST_LOG_STRIDE - 1) / GUEST_LOG_STRIDE;
    if (number <= GUEST_LOGGED)
        return *(const volatile uint64_t *)&mb->first_tsc[number - 1];
    if (strided <= GUEST_LOGGED)
        return *(const volatile uint64_t *)&mb->strided_tsc[strided - 1];
    return 0;
}

static json_t *time_of(struct vm *vm, uint64_t number)
{
    uint64_t tsc = tsc_of(vm->vcpus[0].mb, number);
    return tsc ? json_integer((json_int_t)vm_tsc_to_ns(&vm->vcpus[0], tsc)) : json_null();
}

json_t *touches_get(struct vm *vm, const json_t *of)
{
    size_t i;
    const json_t *one;
    if (!json_is_array(of))
        return NULL;
    json_t *times = json_array();
    vm_calibrate(vm);
    json_array_foreach(of, i, one)
    {
        if (!json_is_integer(one) || json_integer_value(one) < 1) {
            json_decref(times);
            return NULL;
        }
        json_array_append_new(times, time_of(vm, (uint64_t)json_integer_value(one)));
    }
    return json_pack("{s:I,s:I,s:o}", "handed_ns", (json_int_t)vm->handed_ns, "loaded_ns",
                     (json_int_t)vm->loaded_ns, "times_ns", times);
}
