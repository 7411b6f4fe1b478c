/*
 * What QEMU prints about memory, and where blocks are then thought to lie. The texts are
 * QEMU 7.2's, cut down, and one in the form of 8.0 and later. For placement this process is the
 * target.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/qemu/ramblock_parse.h"
#include "common/qemu/ramblock_place.h"

#define MIB (1ull << 20)
#define HEADER "              Block Name    PSize              Offset               Used"

static const char blocks_72[] =
    HEADER "              Total\r\n"
           "                  pc.ram    4 KiB  0x0000000000000000 0x0000000020000000 "
           "0x0000000020000000\r\n"
           "   0000:00:02.0/vga.vram    2 MiB  0x0000000020080000 0x0000000001000000 "
           "0x0000000001000000\r\n"
           "    /rom@etc/acpi/tables    4 KiB  0x0000000021140000 0x0000000000020000 "
           "0x0000000000200000\r\n"
           "   0000:00:04.0/a name with blanks.rom    4 KiB  0x1 0x1000 0x1000\r\n"
           "                            4 KiB  0x0000000021380000 0x0000000000001000 "
           "0x0000000000001000\r\n";

static struct error err;

Test(ramblock, list_of_7_2)
{
    struct ramblock_line *b = NULL;
    size_t n = 0;
    cr_assert_eq(ramblock_parse_list(blocks_72, &b, &n, &err), 0, "%s", err.message);
    cr_assert_eq(n, 5);
    cr_assert_str_eq(b[0].name, "pc.ram");
    cr_assert_eq(b[0].total, 512 * MIB);
    cr_assert_eq(b[0].hva, RAMBLOCK_NO_HVA);
    cr_assert_eq(b[1].page_bytes, 2 * MIB);
    cr_assert_eq(b[1].offset, 0x20080000u);
    cr_assert_eq(b[2].used, 0x20000u);
    cr_assert_eq(b[2].total, 2 * MIB);
    cr_assert_str_eq(b[3].name, "0000:00:04.0/a name with blanks.rom");
    cr_assert_str_eq(b[4].name, "");
    free(b);
}

Test(ramblock, list_with_addresses)
{
    struct ramblock_line *b = NULL;
    size_t n = 0;
    static const char text[] =
        HEADER "              Total                HVA  RO\n"
               "  pc.ram    4 KiB  0x0000000000000000 0x0000000020000000 0x0000000020000000 "
               "0x00007f72ddc00000  rw\n"
               "  pc.bios    4 KiB  0x0000000020000000 0x0000000000040000 0x0000000000040000 "
               "0x00007f72dda00000  ro\n";
    cr_assert_eq(ramblock_parse_list(text, &b, &n, &err), 0, "%s", err.message);
    cr_assert_eq(n, 2);
    cr_assert_eq(b[0].hva, 0x7f72ddc00000u);
    cr_assert_eq(b[1].total, 0x40000u);
    cr_assert_str_eq(b[1].name, "pc.bios");
    free(b);
}

static void list_refused(const char *lines)
{
    char text[8192];
    snprintf(text, sizeof(text), HEADER "              Total\r\n%s", lines);
    struct ramblock_line *b = NULL;
    size_t n;
    cr_assert_lt(ramblock_parse_list(text, &b, &n, &err), 0, "%s", lines);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TARGET);
    cr_assert_null(b);
}

Test(ramblock, lists_that_are_not_understood)
{
    struct ramblock_line *b = NULL;
    size_t n;
    cr_assert_lt(ramblock_parse_list("", &b, &n, &err), 0);
    cr_assert_lt(ramblock_parse_list("unknown command: 'info ramblock'\r\n", &b, &n, &err), 0);
    list_refused("");
    list_refused("pc.ram\r\n");
    list_refused("pc.ram 4 KiB 0x0 0x1000\r\n");
    list_refused("pc.ram 4 KiB 0x0 0x1000 4096\r\n");
    list_refused("pc.ram 4 KiB 0x0 0x1000 0x\r\n");
    list_refused("pc.ram 4 KiB 0x0 0x-1000 0x1000\r\n");
    list_refused("pc.ram 4 KiB 0x0 0x1000 0x10000000000000000\r\n");
    list_refused("pc.ram 4 KiB 0x0 0xfffffffffffff000 0xfffffffffffff000\r\n");
    list_refused("pc.ram 4 KiB 0x0 0x2000 0x1000\r\n"); /* used more than there is */
    list_refused("pc.ram 4 KiB 0x0 0x0 0x1000\r\n");
    list_refused("pc.ram 4 KiB 0x0 0x1001 0x2000\r\n");
    list_refused("pc.ram 3 KiB 0x0 0x1000 0x1000\r\n");
    list_refused("pc.ram 0 KiB 0x0 0x1000 0x1000\r\n");
    list_refused("pc.ram 4 XiB 0x0 0x1000 0x1000\r\n");
    list_refused("pc.ram KiB 0x0 0x1000 0x1000\r\n");
    char lines[4096];
    memset(lines, 'a', sizeof(lines));
    lines[sizeof(lines) - 1] = '\0';
    list_refused(lines);
    snprintf(lines, sizeof(lines), "%0300d 4 KiB 0x0 0x1000 0x1000\r\n", 7); /* name too long */
    list_refused(lines);
}

static const char flat_72[] =
    "FlatView #0\r\n AS \"I/O\", root: io\r\n Root memory region: io\r\n"
    "  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan\r\n\r\n"
    "FlatView #1\r\n AS \"cpu-memory-0\", root: system\r\n AS \"memory\", root: system\r\n"
    " Root memory region: system\r\n"
    "  0000000000000000-000000000009ffff (prio 0, ram): pc.ram\r\n"
    "  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem\r\n"
    "  00000000000c0000-00000000000cafff (prio 0, rom): pc.ram @00000000000c0000\r\n"
    "  0000000000100000-000000001fffffff (prio 0, nv-ram): pc.ram @0000000000100000 KVM\r\n"
    "  00000000fd000000-00000000fdffffff (prio -1, ram): vga.vram KVM\r\n"
    "  00000000fe000000-00000000fe000fff (prio 0, ramd): 0000:01:00.0 BAR 0 mmaps[0]\r\n"
    "  00000000ffc00000-00000000ffffffff (prio 0, romd): system.flash0\r\n"
    "\r\nFlatView #2\r\n AS \"other\", root: x\r\n Root memory region: (none)\r\n"
    "  0000000000000000-00000000000fffff (prio 0, ram): other\r\n";

Test(ramblock, flat_view)
{
    struct flat_range *r = NULL;
    size_t n = 0;
    cr_assert_eq(ramblock_parse_flat(flat_72, &r, &n, &err), 0, "%s", err.message);
    cr_assert_eq(n, 5);
    cr_assert_eq(r[0].bytes, 0xa0000u);
    cr_assert_eq(r[1].gpa, 0xc0000u);
    cr_assert_eq(r[1].offset, 0xc0000u);
    cr_assert(r[1].rom && !r[2].rom && r[4].rom);
    cr_assert_str_eq(r[2].region, "pc.ram");
    cr_assert_eq(r[2].offset, 0x100000u);
    cr_assert_str_eq(r[3].region, "vga.vram");
    cr_assert_str_eq(r[4].region, "system.flash0");
    free(r);
}

static void flat_refused(const char *lines)
{
    char text[8192];
    snprintf(text, sizeof(text), "FlatView #1\r\n AS \"memory\", root: system\r\n%s", lines);
    struct flat_range *r = NULL;
    size_t n;
    cr_assert_lt(ramblock_parse_flat(text, &r, &n, &err), 0, "%s", lines);
    cr_assert_null(r);
}

Test(ramblock, flat_views_that_are_not_understood)
{
    struct flat_range *r = NULL;
    size_t n;
    cr_assert_lt(ramblock_parse_flat("", &r, &n, &err), 0);
    cr_assert_lt(ramblock_parse_flat("FlatView #0\r\n AS \"I/O\", root: io\r\n", &r, &n, &err), 0);
    flat_refused("");
    flat_refused(" Root memory region: (none)\r\n  No rendered FlatView\r\n");
    flat_refused("  0000000000001000-0000000000000fff (prio 0, ram): pc.ram\r\n");
    flat_refused("  0000000000000000-ffffffffffffffff (prio 0, ram): pc.ram\r\n");
    flat_refused("  0000000000000000-0000000000000fff (prio 0, ram): pc.ram @zz\r\n");
    flat_refused("  0000000000000000-0000000000000fff (prio 0, ram): \r\n");
    flat_refused("  0000000000000000-0000000000000fff (prio 0, ram) pc.ram\r\n");
    flat_refused("  nonsense\r\n");
}

Test(ramblock, gpa2hva)
{
    uint64_t hva = 0;
    cr_assert(ramblock_parse_gpa2hva("Host virtual address for 0x0 (pc.ram) is 0x7fb2efe00000\r\n",
                                     &hva));
    cr_assert_eq(hva, 0x7fb2efe00000u);
    cr_assert_not(ramblock_parse_gpa2hva("No memory is mapped at address 0xa0000\r\n", &hva));
    cr_assert_not(ramblock_parse_gpa2hva("Memory at address 0xa0000 is not RAM\r\n", &hva));
    cr_assert_not(ramblock_parse_gpa2hva(
        "Host virtual address for 0x0 (pc.ram) is 0x7fb2efe00000000000\r\n", &hva));
    cr_assert_not(ramblock_parse_gpa2hva("", &hva));
}

Test(ramblock, names)
{
    cr_assert(ramblock_name_fits("pc.ram", "pc.ram"));
    cr_assert(ramblock_name_fits("0000:00:02.0/vga.vram", "vga.vram"));
    cr_assert(ramblock_name_fits("/objects/mem0", "mem0"));
    cr_assert(ramblock_name_fits("/objects/mem0", "/objects/mem0"));
    cr_assert_not(ramblock_name_fits("0000:00:02.0/vga.vram", "vram"));
    cr_assert_not(ramblock_name_fits("pc.ram", "c.ram"));
    cr_assert_not(ramblock_name_fits("ram", "pc.ram"));
    cr_assert_not(ramblock_name_fits("", ""));
}

/* ---- placement ---- */

static struct target self;
static struct mapping maps[8];
static struct mapping_list map_list = {.items = maps};
static struct span_list spans;
static struct ramblock_line lines[4];
static struct placement places[4];

/* A stretch of this process that looks like a guest's memory. */
static uint64_t add_mapping(uint64_t bytes, bool dontfork, const char *name)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(p, MAP_FAILED);
    struct mapping *m = &maps[map_list.count++];
    m->start = (uint64_t)(uintptr_t)p;
    m->end = m->start + bytes;
    m->dontfork = dontfork;
    strcpy(m->name, name);
    return m->start;
}

static void add_block(const char *name, uint64_t offset, uint64_t used, uint64_t total)
{
    static size_t n;
    lines[n] = (struct ramblock_line){.offset = offset, .used = used, .total = total};
    strcpy(lines[n].name, name);
    places[n] = (struct placement){.block = &lines[n], .hva = RAMBLOCK_NO_HVA};
    n++;
}

static int place(size_t n)
{
    self.pid = getpid();
    if (!spans.items)
        cr_assert_eq(span_list_find(&spans, &map_list, &err), 0);
    int r = placement_rest(places, n, &spans, &self, &map_list, &err);
    span_list_free(&spans);
    return r;
}

/* Writes what QEMU keeps of a block: host address, an unused pointer, three lengths, a pointer and
 * flags, the name. */
static void write_record(uint64_t at, uint64_t host, const struct ramblock_line *b)
{
    uint64_t words[7] = {0x1234, host, 0, b->offset, b->used, b->total, 0x5678};
    memcpy((void *)(uintptr_t)at, words, sizeof(words));
    strcpy((char *)(uintptr_t)(at + sizeof(words) + 4), b->name);
}

Test(placement, by_size_when_unique)
{
    uint64_t ram = add_mapping(8 * MIB, true, ""), rom = add_mapping(MIB, true, "");
    add_mapping(MIB, false, ""); /* not marked: no memory of a guest */
    add_block("pc.ram", 0, 8 * MIB, 8 * MIB);
    add_block("pc.rom", 8 * MIB, 4096, MIB);
    cr_assert_eq(place(2), 0, "%s", err.message);
    cr_assert_eq(places[0].hva, ram);
    cr_assert_eq(places[1].hva, rom);
}

Test(placement, ties_are_refused_by_name)
{
    add_mapping(MIB, true, "");
    maps[0].offset = 0;
    add_mapping(MIB, true, "");
    maps[0].inode = 1; /* not to be joined with its neighbour */
    add_block("a", 0, MIB, MIB);
    add_block("b", MIB, MIB, MIB);
    cr_assert_eq(place(2), -EINVAL);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TARGET);
    cr_assert(strstr(err.message, "\"a\"") && strstr(err.message, "2 mappings"), "%s", err.message);
}

Test(placement, one_block_too_few_mappings)
{
    add_mapping(2 * MIB, true, "");
    add_block("a", 0, MIB, MIB);
    cr_assert_eq(place(1), -EINVAL, "a mapping of another size was taken");
}

Test(placement, ties_are_settled_by_records)
{
    uint64_t one = add_mapping(MIB, true, ""), two = add_mapping(MIB, true, "");
    maps[0].inode = 1;
    uint64_t heap = add_mapping(4 * MIB, false, "[heap]");
    add_block("0000:00:03.0/x.rom", 0x40000, 4096, MIB);
    add_block("0000:00:04.0/x.rom", 0x180000, MIB, MIB);
    /* Across the border of the pieces in which the heap is read. */
    write_record(heap + MIB - 32, two, &lines[0]);
    write_record(heap + 3 * MIB + 8, one, &lines[1]);
    cr_assert_eq(place(2), 0, "%s", err.message);
    cr_assert_eq(places[0].hva, two);
    cr_assert_eq(places[1].hva, one);
}

Test(placement, records_that_contradict_are_no_evidence)
{
    uint64_t one = add_mapping(MIB, true, ""), two = add_mapping(MIB, true, "");
    maps[0].inode = 1;
    uint64_t heap = add_mapping(MIB, false, "[heap]");
    add_block("a", 0x40000, MIB, MIB);
    add_block("b", 0x180000, MIB, MIB);
    write_record(heap + 64, one, &lines[0]);
    write_record(heap + 4096, two, &lines[0]); /* one that was freed, say */
    cr_assert_eq(place(2), -EINVAL);
}

Test(placement, records_need_all_to_fit)
{
    uint64_t one = add_mapping(MIB, true, "");
    add_mapping(MIB, true, "");
    maps[0].inode = 1;
    uint64_t heap = add_mapping(MIB, false, "[heap]");
    add_block("a", 0x40000, MIB, MIB);
    add_block("b", 0x180000, MIB, MIB);
    struct ramblock_line other = lines[0];
    other.used -= 4096;
    write_record(heap + 64, one, &other);
    other = lines[0];
    strcpy(other.name, "ab");
    write_record(heap + 4096, one, &other);
    write_record(heap + 8192, one + 512, &lines[0]); /* no page's address */
    write_record(heap + 12288, heap, &lines[0]);     /* no guest memory */
    cr_assert_eq(place(2), -EINVAL);
}

Test(placement, ties_are_settled_by_content)
{
    uint64_t tables = add_mapping(MIB, true, ""), rom = add_mapping(MIB, true, "");
    maps[0].inode = 1;
    memcpy((void *)(uintptr_t)rom, "\x55\xaa", 2);
    add_block("/rom@etc/table-loader", 0x40000, 4096, MIB);
    add_block("0000:00:02.0/vga.rom", 0x180000, MIB, MIB);
    cr_assert_eq(place(2), 0, "%s", err.message);
    cr_assert_eq(places[0].hva, tables);
    cr_assert_eq(places[1].hva, rom);
}

Test(placement, merged_neighbours_are_cut)
{
    uint64_t both = add_mapping(3 * MIB, true, "");
    add_block("a", 0, MIB, MIB);
    add_block("b", MIB, 2 * MIB, 2 * MIB);
    cr_assert_eq(span_list_find(&spans, &map_list, &err), 0);
    cr_assert_eq(placement_set(&places[0], both, "gpa2hva", &spans), 0);
    cr_assert_eq(place(2), 0, "%s", err.message);
    cr_assert_eq(places[1].hva, both + MIB);
}

Test(placement, split_mappings_are_joined)
{
    uint64_t start = add_mapping(3 * MIB, true, "");
    maps[1] = maps[0];
    maps[0].end = maps[1].start = start + MIB;
    maps[1].mergeable = true; /* the flags that split it */
    map_list.count = 2;
    add_block("a", 0, 3 * MIB, 3 * MIB);
    cr_assert_eq(place(1), 0, "%s", err.message);
    cr_assert_eq(places[0].hva, start);
}

Test(placement, an_address_must_lie_in_free_memory)
{
    uint64_t start = add_mapping(MIB, true, "");
    add_block("a", 0, MIB, MIB);
    add_block("b", MIB, MIB, MIB);
    cr_assert_eq(span_list_find(&spans, &map_list, &err), 0);
    cr_assert_eq(placement_set(&places[0], start + 4096, "gpa2hva", &spans), -EINVAL);
    cr_assert_eq(placement_set(&places[0], start, "gpa2hva", &spans), 0);
    cr_assert_eq(placement_set(&places[1], start, "gpa2hva", &spans), -EINVAL);
    span_list_free(&spans);
}
