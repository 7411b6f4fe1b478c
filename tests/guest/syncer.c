/*
 * syncer - a load of small writes that must reach the disk, as a database's: writes a block at a
 * random place of /dev/vda and calls fsync, for ever.
 *
 *   syncer [kib=64] [interval=100]
 *
 * Prints every `interval` ms how many it has done, and how long the slowest since the last line
 * took:
 *
 *   SYNCER up=12.345 syncs=2345 slowest_ms=3.250
 */
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>

#include "report.h"

#define MAX_KIB 1024u

static uint8_t block[MAX_KIB << 10];

int main(int argc, char **argv)
{
    uint64_t bytes = report_option(argc, argv, "kib", 64) << 10, disk_bytes = 0;
    uint64_t interval_ns = report_option(argc, argv, "interval", 100) * 1000000;
    uint64_t random = report_seed(), syncs = 0, slowest_ns = 0;
    int disk = open("/dev/vda", O_RDWR | O_CLOEXEC);
    if (bytes == 0 || bytes > sizeof(block) || disk < 0 ||
        ioctl(disk, BLKGETSIZE64, &disk_bytes) != 0 || disk_bytes < bytes)
        report_die("syncer", "/dev/vda");
    for (uint64_t print = report_now_ns();;) {
        uint64_t began = report_now_ns();
        uint64_t where = report_random(&random) % (disk_bytes / bytes) * bytes;
        memset(block, (int)(syncs & 0xff), bytes);
        if (pwrite(disk, block, bytes, (off_t)where) != (ssize_t)bytes || fsync(disk) != 0)
            report_die("syncer", "write");
        uint64_t now = report_now_ns();
        slowest_ns = now - began > slowest_ns ? now - began : slowest_ns;
        syncs++;
        if (now >= print) {
            report_line("SYNCER up=%.3f syncs=%llu slowest_ms=%.3f", (double)now * 1e-9,
                        (unsigned long long)syncs, (double)slowest_ns * 1e-6);
            slowest_ns = 0;
            print = now + interval_ns;
        }
    }
}
