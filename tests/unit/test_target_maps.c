#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/target/target.h"

/* Taken from a QEMU with 512 MiB of RAM; addresses as they were. */
static const char qemu_smaps[] =
    "55d0a8a00000-55d0a8d4c000 r--p 00000000 fe:00 1311                       "
    "/usr/bin/qemu-system-x86_64\n"
    "Size:               3376 kB\n"
    "KernelPageSize:        4 kB\n"
    "MMUPageSize:           4 kB\n"
    "Rss:                 128 kB\n"
    "THPeligible:           0\n"
    "ProtectionKey:         0\n"
    "VmFlags: rd mr mw me sd \n"
    "7f1b50000000-7f1b70000000 rw-p 00000000 00:00 0 \n"
    "Size:             524288 kB\n"
    "KernelPageSize:        4 kB\n"
    "MMUPageSize:           4 kB\n"
    "Rss:              301060 kB\n"
    "AnonHugePages:    299008 kB\n"
    "ShmemPmdMapped:        0 kB\n"
    "Locked:                0 kB\n"
    "THPeligible:           1\n"
    "VmFlags: rd wr mr mw me dc ac hg mg um uw sd \n"
    "7f1b70000000-7f1b90000000 rw-s 10000000 00:01 2052                       "
    "/memfd:memory-backend-memfd (deleted)\n"
    "KernelPageSize:     2048 kB\n"
    "AnonHugePages:         0 kB\n"
    "ShmemPmdMapped:     2048 kB\n"
    "VmFlags: rd wr sh mr mw me ms dc lo ht ui sd \n"
    "7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]\n"
    "VmFlags: rd wr mr mw me gd ac \n"
    "7ffd001e1000-7ffd001e5000 r--p 00000000 00:00 0                          [vvar]\n"
    "VmFlags: rd mr pf io de dd sd \n"
    "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n"
    "VmFlags: ex \n";

static int parse(const char *text, struct mapping_list *list)
{
    FILE *f = fmemopen((void *)(uintptr_t)text, strlen(text), "r");
    cr_assert_not_null(f);
    int r = mapping_list_parse(f, list);
    fclose(f);
    return r;
}

Test(target_maps, a_vmm_as_smaps_shows_it)
{
    struct mapping_list list;
    cr_assert_eq(parse(qemu_smaps, &list), 0);
    cr_assert_eq(list.count, 6);
    const struct mapping *text = &list.items[0], *ram = &list.items[1], *shared = &list.items[2];

    cr_assert_str_eq(text->name, "/usr/bin/qemu-system-x86_64");
    cr_assert(text->readable && !text->writable && !text->executable && !text->shared);
    cr_assert_eq(text->inode, 1311);
    cr_assert_eq(text->dev_major, 0xfe);

    cr_assert_eq(ram->start, 0x7f1b50000000);
    cr_assert_eq(ram->end - ram->start, 512ull << 20);
    cr_assert_str_eq(ram->name, "");
    cr_assert(ram->dontfork && ram->hugepage && ram->mergeable && ram->uffd_missing &&
              ram->uffd_wp);
    cr_assert(!ram->locked && !ram->hugetlb && !ram->uffd_minor && !ram->io && !ram->pfnmap);
    cr_assert_eq(ram->anon_huge_bytes, 299008ull << 10);
    cr_assert_eq(ram->page_bytes, 4096);

    cr_assert_eq(shared->offset, 0x10000000);
    cr_assert_str_eq(shared->name, "/memfd:memory-backend-memfd (deleted)");
    cr_assert(shared->shared && shared->hugetlb && shared->locked && shared->uffd_minor);
    cr_assert_eq(shared->page_bytes, 2ull << 20);
    cr_assert_eq(shared->anon_huge_bytes, 2ull << 20);

    cr_assert_str_eq(list.items[3].name, "[stack]");
    cr_assert(list.items[4].io && list.items[4].pfnmap);
    cr_assert(list.items[5].executable && !list.items[5].readable);
    cr_assert_eq(list.items[5].end, 0xffffffffff601000);
    mapping_list_free(&list);
}

Test(target_maps, the_brief_form_without_details)
{
    struct mapping_list list;
    cr_assert_eq(parse("00400000-00401000 r-xp 00000000 08:01 77 /bin/a b (deleted)\n"
                       "00401000-00402000 rw-p 00001000 08:01 77 /bin/a b (deleted)\n",
                       &list),
                 0);
    cr_assert_eq(list.count, 2);
    cr_assert_str_eq(list.items[1].name, "/bin/a b (deleted)");
    cr_assert_eq(list.items[1].page_bytes, 4096);
    mapping_list_free(&list);
}

Test(target_maps, many_mappings)
{
    static char text[200 * 64 + 1];
    size_t used = 0;
    for (unsigned i = 0; i < 200; i++)
        used += (size_t)snprintf(text + used, sizeof(text) - used,
                                 "%x000-%x000 rw-p 00000000 00:00 0 \n", 2 * i + 1, 2 * i + 2);
    struct mapping_list list;
    cr_assert_eq(parse(text, &list), 0);
    cr_assert_eq(list.count, 200);
    cr_assert_eq(list.items[199].start, (2ull * 199 + 1) << 12);
    mapping_list_free(&list);
}

Test(target_maps, a_name_longer_than_its_field_is_cut)
{
    char text[1024], name[601];
    memset(name, 'n', 600);
    name[600] = '\0';
    snprintf(text, sizeof(text), "1000-2000 rw-p 00000000 00:00 5 /%s\nVmFlags: rd dc \n", name);
    struct mapping_list list;
    cr_assert_eq(parse(text, &list), 0);
    cr_assert_eq(strlen(list.items[0].name), sizeof(list.items[0].name) - 1);
    cr_assert(list.items[0].dontfork);
    mapping_list_free(&list);
}

/* A key or flag that a newer kernel adds is not a header and does no harm. */
Test(target_maps, unknown_lines_are_skipped)
{
    struct mapping_list list;
    cr_assert_eq(parse("1000-2000 rw-p 00000000 00:00 0 \nFuture: 7 widgets\nno colon here\n"
                       "VmFlags: rd zz q dcx dc \n",
                       &list),
                 0);
    cr_assert_eq(list.count, 1);
    cr_assert(list.items[0].dontfork && !list.items[0].mergeable);
    mapping_list_free(&list);
}

Test(target_maps, what_is_not_such_a_file_is_refused)
{
    struct mapping_list list = {0};
    cr_assert_eq(parse("VmFlags: rd wr\n1000-2000 rw-p 00000000 00:00 0 \n", &list), -EINVAL);
    cr_assert_eq(parse("2000-1000 rw-p 00000000 00:00 0 \n", &list), -EINVAL);
    cr_assert_eq(parse("garbage\n", &list), -EINVAL);
    cr_assert_null(list.items);
}

/* A zombie, or a kernel thread: no memory at all. */
Test(target_maps, an_empty_file_is_a_process_that_has_ended)
{
    struct mapping_list list;
    FILE *f = fopen("/dev/null", "r");
    cr_assert_eq(mapping_list_parse(f, &list), -ESRCH);
    fclose(f);
}

Test(target_maps, find_takes_the_mapping_that_holds_the_address)
{
    struct mapping_list list;
    cr_assert_eq(parse("1000-2000 r--p 0 00:00 0 \n2000-3000 rw-p 0 00:00 0 \n"
                       "5000-9000 r--p 0 00:00 0 \n",
                       &list),
                 0);
    cr_assert_null(mapping_find(&list, 0xfff));
    cr_assert_eq(mapping_find(&list, 0x1000), &list.items[0]);
    cr_assert_eq(mapping_find(&list, 0x1fff), &list.items[0]);
    cr_assert_eq(mapping_find(&list, 0x2000), &list.items[1]);
    cr_assert_null(mapping_find(&list, 0x3000));
    cr_assert_null(mapping_find(&list, 0x4fff));
    cr_assert_eq(mapping_find(&list, 0x8fff), &list.items[2]);
    cr_assert_null(mapping_find(&list, 0x9000));
    mapping_list_free(&list);
    cr_assert_null(mapping_find(&list, 0x1000));
}

static void entry_is(uint64_t entry, enum page_presence presence)
{
    cr_assert_eq(target_decode_pagemap(entry, 31), presence, "0x%llx", (unsigned long long)entry);
}

/* Entries as Linux 6.18 prints them. */
Test(target_pagemap, entries)
{
    const uint64_t swapped = 1ull << 62, protected = 1ull << 57;
    entry_is(0, PAGE_ABSENT);
    entry_is(1ull << 55, PAGE_ABSENT); /* soft-dirty only */
    entry_is(0x8180000000012345, PAGE_PRESENT);
    entry_is(0xa180000000012345, PAGE_PRESENT); /* of a file */
    entry_is(0x830000000001a5a8, PAGE_PRESENT); /* protected */
    entry_is(swapped | 0x1234ull << 5 | 2, PAGE_PRESENT);
    entry_is(swapped | protected | 0x40ull << 5, PAGE_PRESENT);
    entry_is(swapped | 0x40ull << 5 | 28, PAGE_PRESENT); /* migrates */
    entry_is(0x420000000000003f, PAGE_ABSENT);           /* armed hole */
    entry_is(0x400000000000005f, PAGE_POISONED);         /* UFFDIO_POISON */
    entry_is(0x420000000000007f, PAGE_POISONED);         /* both */
    entry_is(swapped | 4ull << 5 | 31, PAGE_ABSENT);     /* guard */
}

/* And Linux 6.1, where the marker is type 30 and lost swap 31. */
Test(target_pagemap, entries_of_6_1)
{
    cr_assert_eq(target_decode_pagemap(0x428000000000003e, 30), PAGE_ABSENT);
    cr_assert_eq(target_decode_pagemap(1ull << 62 | 0x77ull << 5 | 31, 30), PAGE_POISONED);
    cr_assert_eq(target_decode_pagemap(1ull << 62 | 0x77ull << 5 | 29, 30), PAGE_PRESENT);
    cr_assert_eq(target_decode_pagemap(0xa3800000000029e6, 30), PAGE_PRESENT);
}

/* This process itself: what /proc says about a page that is there and one that is not. */
Test(target_pagemap, of_a_live_process)
{
    struct error e = {0};
    struct target t;
    cr_assert_eq(target_open(&t, getpid(), &e), 0, "%s", e.message);
    cr_assert(target_alive(&t));
    int here = 1, copy = 0;
    enum page_presence presence;
    cr_assert_eq(target_presence(&t, (uintptr_t)&here, 1, &presence), 0);
    cr_assert_eq(presence, PAGE_PRESENT);
    cr_assert_eq(target_presence(&t, 1ull << 50, 1, &presence), -EFAULT);
    cr_assert_eq(target_read(&t, (uintptr_t)&here, &copy, sizeof(copy)), (ssize_t)sizeof(copy));
    cr_assert_eq(copy, 1);
    cr_assert_eq(target_read(&t, 1ull << 50, &copy, sizeof(copy)), -EFAULT);
    uint64_t pid = 0;
    cr_assert_eq(target_status_number(&t, "Pid", &pid), 0);
    cr_assert_eq(pid, (uint64_t)getpid());
    cr_assert_eq(target_status_number(&t, "NoSuchKey", &pid), -ENOENT);
    cr_assert_eq(target_status_number(&t, "Name", &pid), -EINVAL);
    target_close(&t);
    cr_assert_eq(t.pidfd, -1);
}
