/*
 * fc_kernel.c - a guest without an operating system for a real Firecracker, where a stock kernel
 * does not boot or is not there: a 64-bit ELF "kernel", entered by Linux's 64-bit boot protocol
 * (long mode, an identity map, RSI = the zero page; Documentation/arch/x86/boot.rst).
 *
 * Round after round it looks at every word of its pages and writes the next generation, in an
 * order that jumps. Most of its pages begin at 16 MiB, the rest are the last of its RAM, behind the
 * gap under 4 GiB if there is so much. A page of an earlier round is as wrong as a damaged one. If
 * the command line tells of a virtio device it is taken for a balloon: each round gives some pages
 * away, which must read as zeros afterwards, while their neighbours must not.
 *
 * Lines: "SELFCHECK 0 up=SECONDS rounds=N given=N errors=N" after each round, of 1.6 seconds or
 * less (a second is 2^31 ticks of the TSC); "ERROR ..." for the first wrong pages.
 *
 * It works in ring 3, with I/O allowed: there are KVM hosts that emulate each instruction of ring
 * 0.
 */
#include <stdint.h>

#define PAGE_WORDS 512u
#define PAGE_BYTES 4096ull
#define LOW_AT (16ull << 20)
#define LOW_PAGES 12288u /* 48 MiB */
#define PAGES 16384u     /* 64 MiB: the rest lies at the end of RAM */
#define STRIDE 7919u     /* odd: a permutation of PAGES, a power of two */
#define GIVEN_AT (80ull << 20)
#define GIVEN_PAGES 64u
#define DIRECTORIES 8u /* 1 GiB each */
#define COM1 0x3f8
#define PAUSE_TICKS (1ull << 26)
#define GIVEN_TICKS (1ull << 34) /* some seconds */
#define MAX_TOLD 5u

/* The zero page. */
#define E820_COUNT 0x1e8
#define COMMAND_LINE 0x228
#define E820_TABLE 0x2d0
#define E820_ENTRY_BYTES 20u
#define E820_RAM 1u

/* virtio-mmio, version 2, in words of 4 bytes (virtio 1.2, 4.2.2). */
enum {
    DRIVER_FEATURES = 0x20 / 4,
    DRIVER_FEATURES_SEL = 0x24 / 4,
    QUEUE_SEL = 0x30 / 4,
    QUEUE_NUM_MAX = 0x34 / 4,
    QUEUE_NUM = 0x38 / 4,
    QUEUE_READY = 0x44 / 4,
    QUEUE_NOTIFY = 0x50 / 4,
    STATUS = 0x70 / 4,
    QUEUE_DESC = 0x80 / 4,
    QUEUE_DRIVER = 0x90 / 4,
    QUEUE_DEVICE = 0xa0 / 4,
};
#define STATUS_STARTED 3u /* ACKNOWLEDGE, DRIVER */
#define STATUS_FEATURES_OK 8u
#define STATUS_DRIVER_OK 4u
#define QUEUES 8u
#define QUEUE_ENTRIES 4u

struct ring {
    struct {
        _Alignas(16) uint64_t address; /* the driver's part must be so aligned */
        uint32_t bytes;
        uint16_t flags, next;
    } desc[QUEUE_ENTRIES];
    struct {
        uint16_t flags, idx, ring[QUEUE_ENTRIES], used_event;
    } driver;
    struct {
        _Alignas(4) uint16_t flags;
        uint16_t idx;
        struct {
            uint32_t id, len;
        } ring[QUEUE_ENTRIES];
    } device;
};

#define PRESENT_WRITABLE_USER 7ull
#define LARGE 0x80ull
#define USER_DATA 0x1bull /* selectors, of ring 3 */
#define USER_CODE 0x23ull
#define FLAGS_IOPL_3 0x3002ull

_Alignas(4096) static uint64_t pml4[PAGE_WORDS], pdpt[PAGE_WORDS], pd[DIRECTORIES][PAGE_WORDS];
static uint64_t gdt[] = {0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cff3000000ffff,
                         0x00affb000000ffff};
_Alignas(4096) static volatile struct ring rings[QUEUES];
static uint32_t given_pfns[GIVEN_PAGES];
_Alignas(16) unsigned char fc_kernel_stack[16384];

struct work {
    uint64_t high_at; /* page LOW_PAGES */
    volatile uint32_t *balloon;
    uint64_t rounds, given, errors;
};

static void put_char(char c)
{
    __asm__ volatile("outb %0, %1" : : "a"(c), "Nd"((uint16_t)COM1));
}

static void put_text(const char *s)
{
    while (*s)
        put_char(*s++);
}

static void put_number(uint64_t n)
{
    char digits[20];
    unsigned count = 0;
    do {
        digits[count++] = (char)('0' + n % 10);
        n /= 10;
    } while (n);
    while (count)
        put_char(digits[--count]);
}

static uint64_t ticks(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull; /* splitmix64's finalizer */
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static void tell_wrong(struct work *w, const char *what, const volatile uint64_t *word,
                       uint64_t expected)
{
    if (w->errors++ >= MAX_TOLD)
        return;
    put_text("ERROR ");
    put_text(what);
    put_text(" at ");
    put_number((uint64_t)(uintptr_t)word);
    put_text(" is ");
    put_number(*word);
    put_text(" for ");
    put_number(expected);
    put_text("\n");
}

static volatile uint64_t *given_page(unsigned i)
{
    return (volatile uint64_t *)(uintptr_t)(GIVEN_AT + 2 * i * PAGE_BYTES);
}

/* From PAGES on: one behind each of those that are given away. */
static volatile uint64_t *page_at(const struct work *w, unsigned page)
{
    if (page >= PAGES)
        return given_page(page - PAGES) + PAGE_WORDS;
    uint64_t at = page < LOW_PAGES ? LOW_AT + page * PAGE_BYTES
                                   : w->high_at + (page - LOW_PAGES) * PAGE_BYTES;
    return (volatile uint64_t *)(uintptr_t)at;
}

/* Is page `page` as the round before left it? Then it is as this one leaves it. */
static void renew_page(struct work *w, unsigned page)
{
    volatile uint64_t *words = page_at(w, page);
    uint64_t seed = mix((uint64_t)page << 32 | w->rounds);
    uint64_t new_seed = mix((uint64_t)page << 32 | (w->rounds + 1));
    for (unsigned i = 0; w->rounds && i < PAGE_WORDS; i++) {
        if (words[i] != seed + i * seed) {
            tell_wrong(w, "page", &words[i], seed + i * seed);
            break;
        }
    }
    for (unsigned i = 0; i < PAGE_WORDS; i++)
        words[i] = new_seed + i * new_seed;
}

/* ---- the balloon ---- */

static void set_address(volatile uint32_t *low_half, const volatile void *at)
{
    low_half[0] = (uint32_t)(uintptr_t)at;
    low_half[1] = (uint32_t)((uint64_t)(uintptr_t)at >> 32);
}

static void start_balloon(volatile uint32_t *device)
{
    device[STATUS] = 0;
    device[STATUS] = 1;
    device[STATUS] = STATUS_STARTED;
    device[DRIVER_FEATURES_SEL] = 0;
    device[DRIVER_FEATURES] = 0;
    device[DRIVER_FEATURES_SEL] = 1;
    device[DRIVER_FEATURES] = 1; /* VIRTIO_F_VERSION_1 */
    device[STATUS] = STATUS_STARTED | STATUS_FEATURES_OK;
    for (unsigned q = 0; q < QUEUES; q++) {
        device[QUEUE_SEL] = q;
        if (device[QUEUE_NUM_MAX] < QUEUE_ENTRIES)
            break;
        device[QUEUE_NUM] = QUEUE_ENTRIES;
        set_address(&device[QUEUE_DESC], rings[q].desc);
        set_address(&device[QUEUE_DRIVER], &rings[q].driver);
        set_address(&device[QUEUE_DEVICE], &rings[q].device);
        device[QUEUE_READY] = 1;
    }
    device[STATUS] = STATUS_STARTED | STATUS_FEATURES_OK | STATUS_DRIVER_OK;
}

/* All of the pages that are given away: are they zero, by `deadline`? */
static void check_given(struct work *w, uint64_t deadline)
{
    for (unsigned i = 0; i < GIVEN_PAGES; i++) {
        volatile uint64_t *words = given_page(i);
        for (unsigned k = 0; k < PAGE_WORDS; k++) {
            while (words[k] && ticks() < deadline)
                __asm__ volatile("pause");
            if (words[k])
                tell_wrong(w, "page given away", &words[k], 0);
        }
    }
}

/*
 * Fills pages, each second of a stretch, gives them away, and sees that they become zero: not at
 * once, as Firecracker says that it has used the request before it takes their memory (1.10, 1.14:
 * balloon/device.rs).
 */
static void give_pages(struct work *w)
{
    volatile struct ring *r = &rings[0];
    check_given(w, 0);
    for (unsigned i = 0; i < GIVEN_PAGES; i++) {
        for (unsigned k = 0; k < PAGE_WORDS; k++)
            given_page(i)[k] = ~(uint64_t)i;
        given_pfns[i] = (uint32_t)((uint64_t)(uintptr_t)given_page(i) / PAGE_BYTES);
        renew_page(w, PAGES + i);
    }
    __asm__ volatile("" : : : "memory");
    r->desc[0].address = (uint64_t)(uintptr_t)given_pfns;
    r->desc[0].bytes = sizeof(given_pfns);
    r->driver.ring[r->driver.idx % QUEUE_ENTRIES] = 0;
    r->driver.idx++;
    w->balloon[QUEUE_NOTIFY] = 0;
    while (r->device.idx != r->driver.idx)
        __asm__ volatile("pause");
    check_given(w, ticks() + GIVEN_TICKS);
    w->given += GIVEN_PAGES;
}

/* ---- from the boot to the work ---- */

/* The last PAGES - LOW_PAGES pages of RAM. */
static uint64_t find_high_pages(const unsigned char *zero_page)
{
    uint64_t end = 0;
    for (unsigned i = 0; i < zero_page[E820_COUNT]; i++) {
        const unsigned char *entry = zero_page + E820_TABLE + (uint64_t)i * E820_ENTRY_BYTES;
        uint64_t start = *(const uint64_t *)entry, bytes = *(const uint64_t *)(entry + 8);
        if (*(const uint32_t *)(entry + 16) == E820_RAM && start + bytes > end)
            end = start + bytes;
    }
    return end - (PAGES - LOW_PAGES) * PAGE_BYTES;
}

/* The address in "virtio_mmio.device=4K@0xADDRESS:IRQ", or NULL. */
static volatile uint32_t *find_device(const char *line)
{
    static const char name[] = "virtio_mmio.device=4K@0x";
    for (; *line; line++) {
        unsigned n = 0;
        while (name[n] && line[n] == name[n])
            n++;
        if (name[n])
            continue;
        uint64_t address = 0;
        for (line += n; (*line >= '0' && *line <= '9') || (*line >= 'a' && *line <= 'f'); line++)
            address = address << 4 | (uint64_t)(*line <= '9' ? *line - '0' : *line - 'a' + 10);
        return (volatile uint32_t *)(uintptr_t)address;
    }
    return 0;
}

static void work(const unsigned char *zero_page)
{
    struct work w = {.high_at = find_high_pages(zero_page)};
    const char *line = (const char *)(uintptr_t) * (const uint32_t *)(zero_page + COMMAND_LINE);
    w.balloon = find_device(line);
    if (w.balloon)
        start_balloon(w.balloon);
    for (;;) {
        if (w.balloon)
            give_pages(&w);
        for (unsigned i = 0; i < PAGES; i++)
            renew_page(&w, i * STRIDE % PAGES);
        w.rounds++;
        put_text("SELFCHECK 0 up=");
        put_number(ticks() >> 31);
        put_text(" rounds=");
        put_number(w.rounds);
        put_text(" given=");
        put_number(w.given);
        put_text(" errors=");
        put_number(w.errors);
        put_text("\n");
        for (uint64_t start = ticks(); ticks() - start < PAUSE_TICKS;)
            __asm__ volatile("pause");
    }
}

/* Makes page tables and segments that ring 3 may use, and goes there. */
void fc_kernel_start(const unsigned char *zero_page)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) pointer = {sizeof(gdt) - 1, (uint64_t)(uintptr_t)gdt};
    pml4[0] = (uint64_t)(uintptr_t)pdpt | PRESENT_WRITABLE_USER;
    for (uint64_t i = 0; i < DIRECTORIES; i++) {
        pdpt[i] = (uint64_t)(uintptr_t)pd[i] | PRESENT_WRITABLE_USER;
        for (uint64_t j = 0; j < PAGE_WORDS; j++)
            pd[i][j] = (i * PAGE_WORDS + j) << 21 | LARGE | PRESENT_WRITABLE_USER;
    }
    __asm__ volatile("mov %0, %%cr3\n\tlgdt %1" : : "r"(pml4), "m"(pointer) : "memory");
    __asm__ volatile("pushq %0\n\tpushq %1\n\tpushq %2\n\tpushq %3\n\tpushq %4\n\tiretq"
                     :
                     : "i"(USER_DATA), "r"(fc_kernel_stack + sizeof(fc_kernel_stack) - 8),
                       "i"(FLAGS_IOPL_3), "i"(USER_CODE), "r"(work), "D"(zero_page)
                     : "memory");
    __builtin_unreachable();
}

__asm__(".section .entry, \"ax\"\n"
        ".globl _start\n"
        "_start: leaq fc_kernel_stack + 16384(%rip), %rsp\n"
        "mov %rsi, %rdi\n"
        "call fc_kernel_start\n"
        ".text\n");
