/*
 * Which mappings are taken for a Firecracker's guest memory: of this process, which maps what each
 * test wants. Lengths are Firecracker's; nothing of it is touched.
 */
#include <criterion/criterion.h>

#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/vmm/firecracker_memory.h"

#define MIB ((uint64_t)1 << 20)
#define GUARD (2 * MIB)

static struct target t;
static struct region_set found;
static struct error err;

/* Memory with address space without access on both sides. */
static uint64_t map_guarded(uint64_t bytes)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    char *around = mmap(NULL, bytes + 2 * GUARD, PROT_NONE, flags, -1, 0);
    cr_assert_neq(around, MAP_FAILED);
    char *at = mmap(around + GUARD, bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED, -1, 0);
    cr_assert_neq(at, MAP_FAILED);
    return (uint64_t)(uintptr_t)at;
}

static void set_up(void)
{
    err = (struct error){0};
    cr_assert_eq(target_open(&t, getpid(), &err), 0, "%s", err.message);
}

static void tear_down(void)
{
    region_set_free(&found);
    target_close(&t);
}

static const char *version = "";

static int look(uint64_t mib)
{
    return firecracker_find_memory(&found, &t, mib * MIB, version, NULL, &err);
}

TestSuite(firecracker_memory, .init = set_up, .fini = tear_down);

Test(firecracker_memory, one_region)
{
    uint64_t at = map_guarded(777 * MIB);
    cr_assert_eq(look(777), 0, "%s", err.message);
    cr_assert_eq(found.count, 1);
    cr_assert_eq(found.items[0].hva, at);
    cr_assert_eq(found.items[0].bytes, 777 * MIB);
    cr_assert_str_eq(found.items[0].name, "mem");
    cr_assert_eq(found.n_gpa, 0);
}

/* In the order of offsets, not of addresses. */
Test(firecracker_memory, two_regions_of_either_layout)
{
    uint64_t low = map_guarded(3072 * MIB), high = map_guarded(2048 * MIB);
    cr_assert_eq(look(5120), 0, "%s", err.message);
    cr_assert_eq(found.count, 2);
    cr_assert_eq(found.items[0].hva, low);
    cr_assert_eq(found.items[1].hva, high);
    cr_assert_str_eq(found.items[1].name, "mem1");
    region_set_free(&found);
    munmap((void *)(uintptr_t)low, 3072 * MIB);
    low = map_guarded(3328 * MIB);
    high = map_guarded(1792 * MIB);
    cr_assert_eq(look(5120), 0, "%s", err.message);
    cr_assert_eq(found.items[0].hva, low);
    cr_assert_eq(found.items[1].hva, high);
}

Test(firecracker_memory, three_regions)
{
    uint64_t at[3] = {map_guarded(3072 * MIB), map_guarded(252 * 1024 * MIB),
                      map_guarded(1024 * MIB)};
    cr_assert_eq(look(256 * 1024), 0, "%s", err.message);
    cr_assert_eq(found.count, 3);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(found.items[i].hva, at[i]);
}

/* Each of them is certain alone; together they are not. */
Test(firecracker_memory, never_guesses)
{
    map_guarded(3072 * MIB);
    map_guarded(2048 * MIB);
    map_guarded(3328 * MIB);
    map_guarded(1792 * MIB);
    cr_assert_lt(look(5120), 0);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_USAGE);
    cr_assert_neq(strstr(err.message, "more than one"), NULL, "%s", err.message);
    cr_assert_neq(strstr(err.hint, "--map"), NULL, "%s", err.hint);
    map_guarded(777 * MIB);
    map_guarded(777 * MIB);
    cr_assert_lt(look(777), 0);
    cr_assert_neq(strstr(err.message, "no mappings"), NULL, "%s", err.message);
}

Test(firecracker_memory, side_by_side)
{
    /* two regions that the kernel has joined: which comes first? */
    uint64_t at = map_guarded(5120 * MIB);
    char wanted[128];
    cr_assert_lt(look(5120), 0);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_USAGE);
    snprintf(wanted, sizeof(wanted), "--map %#llx:0xc0000000 --map %#llx:0x80000000",
             (unsigned long long)(at + 2048 * MIB), (unsigned long long)at);
    cr_assert_neq(strstr(err.hint, wanted), NULL, "%s: %s", wanted, err.hint);
    map_guarded(3200 * MIB); /* or one region of an older version */
    cr_assert_lt(look(3200), 0);
}

/* A stack of a thread, say, that lies directly below or above. */
Test(firecracker_memory, beside_other_memory)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    uint64_t at = map_guarded(777 * MIB);
    char *guest = (char *)(uintptr_t)at;
    cr_assert_neq(mmap(guest - MIB, MIB, PROT_READ | PROT_WRITE, flags, -1, 0), MAP_FAILED);
    cr_assert_neq(mmap(guest + 777 * MIB, MIB, PROT_READ | PROT_WRITE, flags, -1, 0), MAP_FAILED);
    cr_assert_eq(look(777), 0, "%s", err.message);
    cr_assert_eq(found.items[0].hva, at);
}

/* A malloc arena of glibc behind it, which is mapped alike: 64 MiB, the first part of them open. */
Test(firecracker_memory, beside_an_arena)
{
    uint64_t arena_bytes = 64 * MIB, open_bytes = 132 << 10;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    char *around = mmap(NULL, 1024 * MIB, PROT_NONE, flags, -1, 0);
    cr_assert_neq(around, MAP_FAILED);
    char *arena = around + 896 * MIB - (uintptr_t)around % arena_bytes;
    char *guest = arena - 777 * MIB;
    mprotect(guest, 777 * MIB + open_bytes, PROT_READ | PROT_WRITE);
    munmap(arena + arena_bytes, (size_t)(around + 1024 * MIB - arena - arena_bytes));
    cr_assert_eq(look(777), 0, "%s", err.message);
    cr_assert_eq(found.items[0].hva, (uint64_t)(uintptr_t)guest);
    region_set_free(&found);
    /* But not where more than the rest of one lies behind it. */
    munmap(arena + arena_bytes - MIB, MIB);
    cr_assert_lt(look(777), 0);
}

static uint64_t map_file(int fd, uint64_t bytes)
{
    cr_assert_eq(ftruncate(fd, (off_t)bytes), 0);
    char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    cr_assert_neq(at, MAP_FAILED);
    return (uint64_t)(uintptr_t)at;
}

/* A VM that was restored from its memory file: found on tmpfs, refused by its name on a disk. */
Test(firecracker_memory, memory_file)
{
    int fd = memfd_create("memory", MFD_CLOEXEC);
    uint64_t at = map_file(fd, 777 * MIB);
    cr_assert_eq(look(777), 0, "%s", err.message);
    cr_assert_eq(found.items[0].hva, at);
    cr_assert_eq(found.items[0].kind, REGION_PRIVATE_FILE);
    close(fd);
}

Test(firecracker_memory, memory_file_on_a_disk)
{
    struct statfs fs;
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    cr_assert_eq(fstatfs(fd, &fs), 0);
    void *at = mmap(NULL, 555 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    close(fd);
    cr_assert_neq(at, MAP_FAILED);
    if (fs.f_type == TMPFS_MAGIC)
        cr_skip_test("built in memory");
    cr_assert_lt(look(555), 0);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_HAZARD, "%s", err.message);
}

static int look_at(const char *first, const char *second, uint64_t mib)
{
    const char *maps[] = {first, second, NULL};
    region_set_free(&found);
    err = (struct error){0};
    return firecracker_find_memory(&found, &t, mib * MIB, version, maps, &err);
}

/* Named as one, or in the wrong order: another guest's memory. */
Test(firecracker_memory, joined_as_named)
{
    uint64_t at = map_guarded(5120 * MIB);
    char all[64], first[64], second[64];
    snprintf(all, sizeof(all), "%#llx:%llu", (unsigned long long)at, 5120 * MIB + 0ull);
    snprintf(first, sizeof(first), "%#llx:%llu", (unsigned long long)(at + 2048 * MIB),
             3072 * MIB + 0ull);
    snprintf(second, sizeof(second), "%#llx:%llu", (unsigned long long)at, 2048 * MIB + 0ull);
    cr_assert_lt(look_at(all, NULL, 5120), 0);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_USAGE);
    cr_assert_lt(look_at(second, first, 5120), 0);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_USAGE);
    cr_assert_neq(strstr(err.message, "3072 MiB"), NULL, "%s", err.message);
    cr_assert_eq(look_at(first, second, 5120), 0, "%s", err.message);
    cr_assert_eq(found.items[0].hva, at + 2048 * MIB);
}

/* A version says where the gap is: what another one has is another guest's memory. */
Test(firecracker_memory, joined_and_named_by_version)
{
    const struct {
        const char *version;
        uint64_t first_mib, wrong_mib;
    } cases[] = {{"1.14.4", 3072, 3328}, {"1.10.1", 3328, 3072}, {"2.0", 3072, 3328}};
    uint64_t at = map_guarded(5120 * MIB);
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char maps[2][2][64], hint[128];
        for (int k = 0; k < 2; k++) {
            uint64_t first = (k ? cases[i].wrong_mib : cases[i].first_mib) * MIB;
            uint64_t second = 5120 * MIB - first;
            snprintf(maps[k][0], 64, "0x%" PRIx64 ":0x%" PRIx64, at + second, first);
            snprintf(maps[k][1], 64, "0x%" PRIx64 ":0x%" PRIx64, at, second);
        }
        version = cases[i].version;
        region_set_free(&found);
        err = (struct error){0};
        cr_assert_lt(look(5120), 0);
        snprintf(hint, sizeof(hint), ": --map %s --map %s", maps[0][0], maps[0][1]);
        cr_assert(strstr(err.hint, hint) && !strstr(err.hint, maps[1][0]), "%s", err.hint);
        cr_assert_lt(look_at(maps[1][0], maps[1][1], 5120), 0);
        cr_assert_eq(err.exit_code, VMSNAP_EXIT_USAGE);
        cr_assert_eq(look_at(maps[0][0], maps[0][1], 5120), 0, "%s", err.message);
    }
}

Test(firecracker_memory, as_named)
{
    uint64_t at = map_guarded(64 * MIB);
    char first[64], second[64], overlapping[64];
    snprintf(first, sizeof(first), "%#llx:33554432:low", (unsigned long long)(at + 32 * MIB));
    snprintf(second, sizeof(second), "%llu:0x2000000", (unsigned long long)at);
    snprintf(overlapping, sizeof(overlapping), "%#llx:0x2000000",
             (unsigned long long)(at + 16 * MIB));
    const char *maps[] = {first, second, NULL};
    cr_assert_eq(firecracker_find_memory(&found, &t, 64 * MIB, "", maps, &err), 0, "%s",
                 err.message);
    cr_assert_eq(found.items[0].hva, at + 32 * MIB);
    cr_assert_eq(found.items[1].hva, at);
    cr_assert_str_eq(found.items[0].name, "low");
    cr_assert_str_eq(found.items[1].name, "mem1");
    region_set_free(&found);
    cr_assert_lt(firecracker_find_memory(&found, &t, 65 * MIB, "", maps, &err), 0);
    const char *const bad[] = {overlapping,
                               "0x1000",
                               "0x1000:",
                               "zero:1048576",
                               ":1",
                               "0x1000:77",
                               "0x1000:1048576:",
                               "0x1000:1048576:a b",
                               "0xffffffffffff0000:1048576"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        maps[1] = bad[i];
        cr_assert_lt(firecracker_find_memory(&found, &t, 64 * MIB, "", maps, &err), 0, "%s",
                     bad[i]);
        cr_assert_eq(err.exit_code, VMSNAP_EXIT_USAGE, "%s: %s", bad[i], err.message);
    }
}
