/*
 * vio - keeps virtio devices busy, so that QEMU's own threads write guest memory all the time:
 * reads random numbers from virtio-rng and blocks from a read-only virtio disk with O_DIRECT.
 *
 *   vio [interval=500] [pause_us=1000]
 *
 * A disk whose sectors start with VIO_DISK_MAGIC holds a pattern that is checked: each 512-byte
 * sector is the magic, its number, then words of pattern_mix(number + i). Any other disk (QEMU's
 * null-co with read-zeroes) must read as zeros. Each buffer is filled with 0xAA first, so a read
 * that never reached memory is seen. Prints every `interval` ms:
 *
 *   VIO up=12.345 rng_bytes=4096 blk_bytes=1048576 errors=0
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "pattern.h"
#include "report.h"

#define VIO_DISK_MAGIC 0x4b5349444f495643ull
#define BUFFER_BYTES (256u * 1024)
#define N_BUFFERS 16u
#define SECTOR_WORDS (512u / 8)

struct vio {
    int rng, disk;
    uint64_t disk_bytes;
    bool patterned;
    uint8_t *buffers;
    uint64_t rng_bytes, blk_bytes, errors;
    uint64_t random;
};

static void open_disk(struct vio *v)
{
    v->disk = open("/dev/vda", O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (v->disk < 0)
        return;
    if (ioctl(v->disk, BLKGETSIZE64, &v->disk_bytes) != 0 || v->disk_bytes < BUFFER_BYTES)
        report_die("vio", "size of /dev/vda");
    if (pread(v->disk, v->buffers, 4096, 0) != 4096)
        report_die("vio", "read of /dev/vda");
    uint64_t magic;
    memcpy(&magic, v->buffers, sizeof(magic));
    v->patterned = magic == VIO_DISK_MAGIC;
}

static bool sector_is_right(const struct vio *v, const uint64_t *words, uint64_t sector)
{
    if (!v->patterned) {
        for (size_t i = 0; i < SECTOR_WORDS; i++) {
            if (words[i] != 0)
                return false;
        }
        return true;
    }
    if (words[0] != VIO_DISK_MAGIC || words[1] != sector)
        return false;
    for (size_t i = 2; i < SECTOR_WORDS; i++) {
        if (words[i] != pattern_mix(sector + i))
            return false;
    }
    return true;
}

static void read_disk(struct vio *v)
{
    uint64_t where = report_random(&v->random) % (v->disk_bytes / BUFFER_BYTES) * BUFFER_BYTES;
    uint8_t *buffer = v->buffers + report_random(&v->random) % N_BUFFERS * BUFFER_BYTES;
    memset(buffer, 0xaa, BUFFER_BYTES);
    ssize_t n = pread(v->disk, buffer, BUFFER_BYTES, (off_t)where);
    if (n != (ssize_t)BUFFER_BYTES) {
        v->errors++;
        report_line("ERROR vio: read of the disk at %llu: %zd %m", (unsigned long long)where, n);
        return;
    }
    v->blk_bytes += BUFFER_BYTES;
    for (size_t i = 0; i < BUFFER_BYTES / 512; i++) {
        unsigned long long sector = where / 512 + i;
        if (!sector_is_right(v, (const uint64_t *)(void *)(buffer + i * 512), sector) &&
            v->errors++ < 20)
            report_line("ERROR vio: sector %llu read wrong", sector);
    }
}

static void read_rng(struct vio *v)
{
    uint8_t bytes[64];
    ssize_t n = read(v->rng, bytes, sizeof(bytes));
    if (n > 0) {
        v->rng_bytes += (uint64_t)n;
    } else if (v->rng_bytes == 0) { /* /dev/hwrng is there without a device, too */
        close(v->rng);
        v->rng = -1;
    }
}

int main(int argc, char **argv)
{
    uint64_t interval_ns = report_option(argc, argv, "interval", 500) * 1000000;
    uint64_t pause_us = report_option(argc, argv, "pause_us", 1000);
    struct vio v = {.random = report_seed()};
    v.buffers = mmap(NULL, N_BUFFERS * BUFFER_BYTES, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (v.buffers == MAP_FAILED)
        report_die("vio", "mmap");
    v.rng = open("/dev/hwrng", O_RDONLY | O_CLOEXEC);
    if (v.rng >= 0)
        read_rng(&v);
    open_disk(&v);
    if (v.rng < 0 && v.disk < 0)
        report_die("vio", "neither a random number generator nor /dev/vda");
    report_line("VIO ready rng=%d disk=%llu patterned=%d", v.rng >= 0,
                (unsigned long long)v.disk_bytes, v.patterned);
    for (uint64_t print = report_now_ns();;) {
        if (v.rng >= 0)
            read_rng(&v);
        if (v.disk >= 0)
            read_disk(&v);
        uint64_t now = report_now_ns();
        if (now >= print) {
            report_line("VIO up=%.3f rng_bytes=%llu blk_bytes=%llu errors=%llu", (double)now * 1e-9,
                        (unsigned long long)v.rng_bytes, (unsigned long long)v.blk_bytes,
                        (unsigned long long)v.errors);
            print = now + interval_ns;
        }
        nanosleep(&(struct timespec){.tv_nsec = (long)(pause_us % 1000000) * 1000}, NULL);
    }
}
