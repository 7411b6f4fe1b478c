#include "checked_syscall.h"

#include <cpuid.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define AREA_BYTES (16u << 10)
#define FXSAVE_BYTES 512u
#define PKRU_FEATURE 9
#define TILECFG_FEATURE 17
#define TILEDATA_FEATURE 18
#define ARCH_REQ_XCOMP_PERM 0x1023
#define PKRU_PATTERN 0x55555550u /* key 0 stays usable */

/* In the order in which the assembly below stores them. */
enum { RBX, RBP, R12, R13, R14, R15, RDI, RSI, RDX, R10, R8, R9, N_GPR };
static const char *const gpr_names[N_GPR] = {"rbx", "rbp", "r12", "r13", "r14", "r15",
                                             "rdi", "rsi", "rdx", "r10", "r8",  "r9"};

struct registers {
    uint64_t in[N_GPR];  /* set before the call */
    uint64_t out[N_GPR]; /* seen after it */
    uint64_t nr, result;
    void *area_in, *area_out;
    uint64_t features; /* XSAVE mask; 0: FXSAVE */
    uint64_t red_zone[16];
    uint64_t rsp_difference;
};

/* The assembly needs the offsets. */
_Static_assert(offsetof(struct registers, out) == 96 && offsetof(struct registers, nr) == 192 &&
                   offsetof(struct registers, area_in) == 208 &&
                   offsetof(struct registers, features) == 224 &&
                   offsetof(struct registers, red_zone) == 232 &&
                   offsetof(struct registers, rsp_difference) == 360,
               "offsets");

void checked_syscall_raw(struct registers *r);

/*
 * The pointer lies at the top of the stack over the call, since every register is under test. rcx
 * and r11 are the system call's own to change, rax is its result.
 */
__asm__(".text\n"
        ".globl checked_syscall_raw\n"
        ".type checked_syscall_raw, @function\n"
        "checked_syscall_raw:\n"
        "    push %rbx\n"
        "    push %rbp\n"
        "    push %r12\n"
        "    push %r13\n"
        "    push %r14\n"
        "    push %r15\n"
        "    push %rsp\n" /* what rsp was, less nothing: compared below */
        "    push %rdi\n"
        "    mov %rdi, %r11\n"
        /* FPU in */
        "    mov 208(%r11), %rcx\n"
        "    mov 224(%r11), %eax\n"
        "    mov 228(%r11), %edx\n"
        "    test %eax, %eax\n"
        "    jz 1f\n"
        "    xrstor64 (%rcx)\n"
        "    jmp 2f\n"
        "1:  fxrstor64 (%rcx)\n"
        "2:\n"
        /* red zone: -128(%rsp) to -8(%rsp) */
        "    mov $16, %ecx\n"
        "3:  mov %rcx, %rax\n"
        "    neg %rax\n"
        "    mov 232-8(%r11,%rcx,8), %rdx\n"
        "    mov %rdx, (%rsp,%rax,8)\n"
        "    dec %ecx\n"
        "    jnz 3b\n"
        /* general registers in */
        "    mov 0(%r11), %rbx\n"
        "    mov 8(%r11), %rbp\n"
        "    mov 16(%r11), %r12\n"
        "    mov 24(%r11), %r13\n"
        "    mov 32(%r11), %r14\n"
        "    mov 40(%r11), %r15\n"
        "    mov 48(%r11), %rdi\n"
        "    mov 56(%r11), %rsi\n"
        "    mov 64(%r11), %rdx\n"
        "    mov 72(%r11), %r10\n"
        "    mov 80(%r11), %r8\n"
        "    mov 88(%r11), %r9\n"
        "    mov 192(%r11), %rax\n"
        /* calls that may go on as restart_syscall, as compilers make them */
        "    cmp $7, %eax\n"
        "    jne 7f\n"
        "    mov $7, %eax\n" /* poll */
        "    syscall\n"
        "    jmp 9f\n"
        "7:  cmp $35, %eax\n"
        "    jne 7f\n"
        "    mov $35, %eax\n" /* nanosleep */
        "    syscall\n"
        "    jmp 9f\n"
        "7:  cmp $202, %eax\n"
        "    jne 7f\n"
        "    mov $202, %eax\n" /* futex */
        "    syscall\n"
        "    jmp 9f\n"
        "7:  cmp $230, %eax\n"
        "    jne 7f\n"
        "    mov $230, %eax\n" /* clock_nanosleep */
        "    syscall\n"
        "    jmp 9f\n"
        "7:  syscall\n"
        "9:  mov (%rsp), %r11\n"
        "    mov %rax, 200(%r11)\n"
        "    mov %rbx, 96(%r11)\n"
        "    mov %rbp, 104(%r11)\n"
        "    mov %r12, 112(%r11)\n"
        "    mov %r13, 120(%r11)\n"
        "    mov %r14, 128(%r11)\n"
        "    mov %r15, 136(%r11)\n"
        "    mov %rdi, 144(%r11)\n"
        "    mov %rsi, 152(%r11)\n"
        "    mov %rdx, 160(%r11)\n"
        "    mov %r10, 168(%r11)\n"
        "    mov %r8, 176(%r11)\n"
        "    mov %r9, 184(%r11)\n"
        /* red zone out */
        "    mov $16, %ecx\n"
        "4:  mov %rcx, %rax\n"
        "    neg %rax\n"
        "    mov (%rsp,%rax,8), %rdx\n"
        "    mov %rdx, 232-8(%r11,%rcx,8)\n"
        "    dec %ecx\n"
        "    jnz 4b\n"
        /* FPU out */
        "    mov 216(%r11), %rcx\n"
        "    mov 224(%r11), %eax\n"
        "    mov 228(%r11), %edx\n"
        "    test %eax, %eax\n"
        "    jz 5f\n"
        "    xsave64 (%rcx)\n"
        "    jmp 6f\n"
        "5:  fxsave64 (%rcx)\n"
        "6:\n"
        "    pop %rdi\n"
        "    pop %rax\n"
        "    sub %rsp, %rax\n"
        "    mov %rax, 360(%r11)\n"
        /* a plain FPU for the C code that follows */
        "    fninit\n"
        "    push $0x1f80\n"
        "    ldmxcsr (%rsp)\n"
        "    pop %rcx\n"
        "    pop %r15\n"
        "    pop %r14\n"
        "    pop %r13\n"
        "    pop %r12\n"
        "    pop %rbp\n"
        "    pop %rbx\n"
        "    ret\n"
        ".size checked_syscall_raw, .-checked_syscall_raw\n");

static uint8_t area_in[AREA_BYTES] __attribute__((aligned(64)));
static uint8_t area_out[AREA_BYTES] __attribute__((aligned(64)));
static uint64_t features; /* 0: the CPU has no XSAVE */
static char components[256];

static bool cpu_has_xsave(void)
{
    uint32_t a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & 1u << 27); /* OSXSAVE */
}

static uint64_t read_xcr0(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static void extent(unsigned feature, uint32_t *offset, uint32_t *bytes)
{
    uint32_t c, d;
    __cpuid_count(0xd, feature, *bytes, *offset, c, d);
}

/* x87 control word, MXCSR, the eight x87 registers (as MMX would leave them), sixteen XMM. */
static void fill_legacy(void)
{
    uint16_t fcw = 0x027f;   /* double precision: not the default */
    uint32_t mxcsr = 0x7f80; /* round toward zero: not the default */
    memset(area_in, 0, FXSAVE_BYTES);
    memcpy(area_in, &fcw, sizeof(fcw));
    area_in[4] = 0xff; /* all eight registers in use */
    memcpy(area_in + 24, &mxcsr, sizeof(mxcsr));
    for (unsigned i = 0; i < 8; i++) {
        uint64_t mantissa = 0x8000000000000000ull | (0x1111111111111111ull * (i + 1) >> 4);
        uint16_t exponent = (uint16_t)(0x3fff + i);
        memcpy(area_in + 32 + 16 * i, &mantissa, sizeof(mantissa));
        memcpy(area_in + 32 + 16 * i + 8, &exponent, sizeof(exponent));
    }
    for (unsigned i = 0; i < 256; i++)
        area_in[160 + i] = (uint8_t)(i * 7 + 1);
}

/* Two tiles of 16 rows of 64 bytes: enough to make the component live. */
static void fill_tile_config(uint8_t *at)
{
    memset(at, 0, 64);
    at[0] = 1; /* palette */
    for (unsigned i = 0; i < 8; i++) {
        at[16 + 2 * i] = 64;
        at[48 + i] = 16;
    }
}

static void fill_component(unsigned feature, uint32_t offset, uint32_t bytes)
{
    uint32_t pkru = PKRU_PATTERN;
    if (feature == PKRU_FEATURE) {
        memset(area_in + offset, 0, bytes);
        memcpy(area_in + offset, &pkru, sizeof(pkru));
        return;
    }
    if (feature == TILECFG_FEATURE) {
        fill_tile_config(area_in + offset);
        return;
    }
    for (uint32_t i = 0; i < bytes; i++)
        area_in[offset + i] = (uint8_t)(i * 13 + feature);
}

static void name_component(unsigned feature)
{
    static const char *const names[] = {
        [2] = " avx",  [5] = " opmask",   [6] = " zmm-hi256", [7] = " hi16-zmm",
        [9] = " pkru", [17] = " tilecfg", [18] = " tiledata"};
    size_t used = strlen(components);
    if (feature < sizeof(names) / sizeof(names[0]) && names[feature])
        snprintf(components + used, sizeof(components) - used, "%s", names[feature]);
}

static uint64_t wanted_features(bool amx)
{
    uint64_t known = 1u << 0 | 1u << 1 | 1u << 2 | 1u << 5 | 1u << 6 | 1u << 7 | 1u << PKRU_FEATURE;
    if (amx)
        known |= 1u << TILECFG_FEATURE | 1u << TILEDATA_FEATURE;
    return known & read_xcr0();
}

bool checked_syscall_init(bool amx)
{
    snprintf(components, sizeof(components), "x87 sse");
    fill_legacy();
    if (!cpu_has_xsave())
        return !amx;
    if (amx && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILEDATA_FEATURE) != 0)
        return false;
    features = wanted_features(amx);
    for (unsigned i = 2; i < 63; i++) {
        uint32_t offset, bytes;
        if (!(features & 1ull << i))
            continue;
        extent(i, &offset, &bytes);
        if (bytes == 0 || offset + bytes > AREA_BYTES)
            abort();
        fill_component(i, offset, bytes);
        name_component(i);
    }
    memset(area_in + FXSAVE_BYTES, 0, 64);
    memcpy(area_in + FXSAVE_BYTES, &features, sizeof(features));
    return true;
}

const char *checked_syscall_components(void)
{
    return components;
}

/* Skips what is not state: the last instruction's addresses, MXCSR's mask, reserved bytes. */
static const char *compare_fpu(void)
{
    static char text[64];
    if (memcmp(area_in, area_out, 5) != 0)
        return "x87 control, status or tag word";
    if (memcmp(area_in + 24, area_out + 24, 4) != 0)
        return "mxcsr";
    for (unsigned i = 0; i < 8; i++) {
        if (memcmp(area_in + 32 + 16 * i, area_out + 32 + 16 * i, 10) != 0)
            return "x87 registers";
    }
    if (memcmp(area_in + 160, area_out + 160, 256) != 0)
        return "xmm registers";
    for (unsigned i = 2; i < 63; i++) {
        uint32_t offset, bytes;
        if (!(features & 1ull << i))
            continue;
        extent(i, &offset, &bytes);
        if (memcmp(area_in + offset, area_out + offset, bytes) != 0) {
            snprintf(text, sizeof(text), "FPU component %u", i);
            return text;
        }
    }
    return NULL;
}

const char *checked_syscall(int64_t *result, long nr, const uint64_t args[6])
{
    static struct registers r;
    uint64_t red_zone[16];
    r = (struct registers){
        .nr = (uint64_t)nr, .area_in = area_in, .area_out = area_out, .features = features};
    for (unsigned i = RBX; i <= R15; i++)
        r.in[i] = 0x0101010101010101ull * (0x10 + i);
    for (unsigned i = 0; i < 6; i++)
        r.in[RDI + i] = args[i];
    for (unsigned i = 0; i < 16; i++)
        red_zone[i] = r.red_zone[i] = 0x0123456789abcdefull * (i + 3);
    memset(area_out, 0, sizeof(area_out));
    checked_syscall_raw(&r);
    *result = (int64_t)r.result;
    for (unsigned i = 0; i < N_GPR; i++) {
        if (r.in[i] != r.out[i])
            return gpr_names[i];
    }
    if (memcmp(red_zone, r.red_zone, sizeof(red_zone)) != 0)
        return "red zone";
    if (r.rsp_difference != 0)
        return "rsp";
    return compare_fpu();
}
