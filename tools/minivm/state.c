/* state.c - see state.h. */
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blob.h"

#define STATE_MAGIC 0x31564e494d53564dull
#define STATE_VERSION 2u

struct state_header {
    uint64_t magic;
    uint32_t version, cpus;
    char accel[16];
    uint64_t record_bytes; /* of the accelerator, per vCPU */
    uint64_t memory_bytes;
    uint64_t regions; /* into which memory is cut: addresses depend on it */
    uint64_t code;    /* a checksum of the guest's code */
};

static uint64_t code_sum(void)
{
    uint64_t sum = blob_bytes;
    for (uint64_t i = 0; i < blob_bytes; i++)
        sum = guest_mix(sum + blob_code[i]);
    return sum;
}

static struct state_header header_of(const struct vm *vm)
{
    struct state_header h = {
        .magic = STATE_MAGIC,
        .version = STATE_VERSION,
        .cpus = vm->o.cpus,
        .record_bytes = vm->accel->state_bytes,
        .memory_bytes = vm->memory.bytes,
        .regions = vm->memory.n_regions,
        .code = code_sum(),
    };
    strncpy(h.accel, vm->accel->name, sizeof(h.accel) - 1);
    return h;
}

static bool refuse(char *why, size_t why_bytes, const char *what)
{
    snprintf(why, why_bytes, "%s", what);
    return false;
}

static bool write_all(int fd, const uint8_t *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t n = write(fd, data, bytes);
        if (n < 0 && errno != EINTR)
            return false;
        data += n > 0 ? n : 0;
        bytes -= n > 0 ? (size_t)n : 0;
    }
    return true;
}

static bool read_all(int fd, uint8_t *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t n = read(fd, data, bytes);
        if (n == 0)
            errno = ENODATA;
        if (n == 0 || (n < 0 && errno != EINTR))
            return false;
        data += n > 0 ? n : 0;
        bytes -= n > 0 ? (size_t)n : 0;
    }
    return true;
}

static size_t state_bytes(const struct vm *vm)
{
    size_t each = sizeof(struct guest_state) + vm->accel->state_bytes;
    return sizeof(struct state_header) + vm->o.cpus * each;
}

bool state_save(struct vm *vm, int fd, uint64_t *bytes, char *why, size_t why_bytes)
{
    struct state_header h = header_of(vm);
    uint8_t *data = malloc(state_bytes(vm)), *p = data;
    bool ok = data != NULL;
    if (ok)
        p = (uint8_t *)memcpy(data, &h, sizeof(h)) + sizeof(h);
    for (unsigned i = 0; ok && i < vm->o.cpus; i++) {
        memcpy(p, memory_state(&vm->memory, i), sizeof(struct guest_state));
        p += sizeof(struct guest_state);
        ok = !vm->accel->save || vm->accel->save(&vm->vcpus[i], p);
        p += vm->accel->state_bytes;
    }
    *bytes = ok ? (uint64_t)(p - data) : 0;
    ok = ok && write_all(fd, data, *bytes);
    if (!ok)
        snprintf(why, why_bytes, "cannot save the vCPUs: %s", strerror(errno));
    free(data);
    return ok;
}

static bool load_vcpu(struct vcpu *v, const uint8_t *p, char *why, size_t why_bytes)
{
    const struct vm *vm = v->vm;
    struct guest_state s;
    memcpy(&s, p, sizeof(s));
    if (!memory_state_is_sound(&vm->memory, &s, v->index, vm->o.cpus))
        return refuse(why, why_bytes, "the state of the guest is damaged");
    /* From here on guest memory is touched. */
    if (memcmp(&s, memory_state(&vm->memory, v->index), sizeof(s)) != 0)
        return refuse(why, why_bytes, "memory and vCPU state are not of one instant");
    if (!vm->accel->load || vm->accel->load(v, p + sizeof(s)))
        return true;
    snprintf(why, why_bytes, "the state does not fit the vCPU: %s", strerror(errno));
    return false;
}

static bool load_all(struct vm *vm, const uint8_t *data, char *why, size_t why_bytes)
{
    struct state_header here = header_of(vm);
    if (memcmp(data, &here, sizeof(here)) != 0)
        return refuse(why, why_bytes,
                      "the state is of another minivm: another build, accelerator, number of "
                      "vCPUs or size of memory");
    size_t each = sizeof(struct guest_state) + vm->accel->state_bytes;
    for (unsigned i = 0; i < vm->o.cpus; i++)
        if (!load_vcpu(&vm->vcpus[i], data + sizeof(here) + i * each, why, why_bytes))
            return false;
    return true;
}

bool state_load(struct vm *vm, int fd, char *why, size_t why_bytes)
{
    size_t bytes = state_bytes(vm);
    uint8_t *data = malloc(bytes);
    bool ok = data && read_all(fd, data, bytes);
    if (!ok)
        snprintf(why, why_bytes, "cannot read the state: %s", strerror(errno));
    ok = ok && load_all(vm, data, why, why_bytes);
    free(data);
    return ok;
}

bool state_peek(const char *path, struct options *o, char *why, size_t why_bytes)
{
    struct state_header h = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool ok = fd >= 0 && read_all(fd, (uint8_t *)&h, sizeof(h));
    if (!ok)
        snprintf(why, why_bytes, "cannot read %s: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
    if (!ok)
        return false;
    if (h.magic != STATE_MAGIC || h.version != STATE_VERSION || h.cpus == 0 ||
        h.cpus > GUEST_MAX_CPUS || h.regions == 0 || h.regions > GUEST_MAX_REGIONS ||
        h.memory_bytes > GUEST_MAX_RAM_BYTES)
        return refuse(why, why_bytes, "the state is of another minivm, or of no minivm at all");
    o->cpus = h.cpus;
    o->regions = (unsigned)h.regions;
    o->memory_bytes = h.memory_bytes;
    if (o->accel == ACCEL_AUTO)
        o->accel =
            strncmp(h.accel, accel_threads.name, sizeof(h.accel)) ? ACCEL_KVM : ACCEL_THREADS;
    return true;
}
