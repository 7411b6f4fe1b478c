/*
 * save.c - see save.h. The order and what happens to a file that is there are Firecracker's
 * (create_snapshot() and snapshot_memory_to_file() of its source): the state file is truncated; a
 * memory file of the right size is written over in place, since it may be the very file that this
 * memory is mapped from, any other is emptied first. All bytes are written, zeros too.
 */
#include "save.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "state.h"

#define PIECE_BYTES (1u << 20)

static bool failed(const char *path, char *why, size_t why_bytes)
{
    snprintf(why, why_bytes, "%s: %s", path, strerror(errno));
    return false;
}

/* CRC-64 with the polynomial of Jones, as Firecracker's state files end with it: over a whole file
 * it is 0. False: the file can't be read. */
static bool sum_file(int fd, uint64_t *sum)
{
    uint8_t data[4096];
    ssize_t n;
    *sum = 0;
    for (off_t at = 0; (n = pread(fd, data, sizeof(data), at)) > 0; at += n)
        for (ssize_t i = 0; i < n; i++) {
            *sum ^= data[i];
            for (int bit = 0; bit < 8; bit++)
                *sum = *sum >> 1 ^ (*sum & 1 ? 0x95ac9329ac4bc9b5ull : 0);
        }
    return n == 0;
}

static bool end_with_sum(int fd)
{
    uint64_t sum;
    return sum_file(fd, &sum) && write(fd, &sum, sizeof(sum)) == (ssize_t)sizeof(sum) &&
           fsync(fd) == 0;
}

static bool save_state_file(struct vm *vm, const char *path, char *why, size_t why_bytes)
{
    uint64_t bytes;
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        return failed(path, why, why_bytes);
    bool ok = state_save(vm, fd, &bytes, why, why_bytes);
    if (ok && !end_with_sum(fd))
        ok = failed(path, why, why_bytes);
    close(fd);
    return ok;
}

static bool write_region(int fd, const struct memory_region *r)
{
    for (uint64_t at = 0; at < r->bytes;) {
        size_t bytes = r->bytes - at < PIECE_BYTES ? (size_t)(r->bytes - at) : PIECE_BYTES;
        ssize_t n = pwrite(fd, r->hva + at, bytes, (off_t)(r->offset + at));
        if (n < 0 && errno != EINTR)
            return false;
        at += n > 0 ? (uint64_t)n : 0;
    }
    return true;
}

static bool write_memory(int fd, const struct memory *m)
{
    struct stat s;
    if (fstat(fd, &s) != 0 || (s.st_size != (off_t)m->bytes && ftruncate(fd, 0) != 0) ||
        ftruncate(fd, (off_t)m->bytes) != 0)
        return false;
    for (unsigned i = 0; i < m->n_regions; i++)
        if (!write_region(fd, &m->regions[i]))
            return false;
    return fsync(fd) == 0;
}

bool save_files(struct vm *vm, const char *state_path, const char *memory_path, char *why,
                size_t why_bytes)
{
    if (!save_state_file(vm, state_path, why, why_bytes))
        return false;
    int fd = open(memory_path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    bool ok = fd >= 0 && write_memory(fd, &vm->memory);
    if (!ok)
        failed(memory_path, why, why_bytes);
    if (fd >= 0)
        close(fd);
    return ok;
}

bool save_resume(struct vm *vm, char *why, size_t why_bytes)
{
    int fd = open(vm->o.vmstate, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return failed(vm->o.vmstate, why, why_bytes);
    uint64_t sum = 1;
    bool ok = sum_file(fd, &sum) && sum == 0;
    if (!ok)
        snprintf(why, why_bytes, "%s: its check sum is wrong", vm->o.vmstate);
    ok = ok && state_load(vm, fd, why, why_bytes);
    close(fd);
    if (ok)
        vm->status = VM_PAUSED;
    return ok;
}
