/*
 * x86_code.c - finds two instruction sequences in the target's own code, by their bytes and
 * so without symbols: nothing is ever written into code.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/inject/x86.h"

#define CHUNK_BYTES (64u << 10)
#define OVERLAP_BYTES 16u /* longer than any sequence looked for */

static const uint8_t syscall_ret[] = {0x0f, 0x05, 0xc3};
/* glibc and musl: mov $15,%rax (7 bytes); others: mov $15,%eax (5 bytes). */
static const uint8_t restorer_rax[] = {0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05};
static const uint8_t restorer_eax[] = {0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05};

static void look_for(uint64_t *found, const uint8_t *buf, size_t len, uint64_t address,
                     const uint8_t *bytes, size_t n)
{
    const uint8_t *at = *found ? NULL : memmem(buf, len, bytes, n);
    if (at)
        *found = address + (uint64_t)(at - buf);
}

static bool complete(const struct x86_code *code)
{
    return code->syscall_ret && code->restorer;
}

/* 0, or -errno when a part of the mapping could not be read. */
static int search_mapping(struct x86_code *code, const struct target *t, const struct mapping *m,
                          uint8_t *buf)
{
    for (uint64_t at = m->start; at < m->end && !complete(code);) {
        size_t len = m->end - at < CHUNK_BYTES ? m->end - at : CHUNK_BYTES;
        ssize_t n = target_read(t, at, buf, len);
        if (n <= 0)
            return n < 0 ? (int)n : -EFAULT;
        len = (size_t)n;
        look_for(&code->syscall_ret, buf, len, at, syscall_ret, sizeof(syscall_ret));
        look_for(&code->restorer, buf, len, at, restorer_rax, sizeof(restorer_rax));
        look_for(&code->restorer, buf, len, at, restorer_eax, sizeof(restorer_eax));
        at += len > OVERLAP_BYTES && at + len < m->end ? len - OVERLAP_BYTES : len;
    }
    return 0;
}

/* Code that does not change: not what a JIT writes. */
static bool is_fixed_code(const struct mapping *m)
{
    return m->executable && m->readable && !m->writable &&
           (m->inode != 0 || strcmp(m->name, "[vdso]") == 0);
}

static bool is_likely(const struct mapping *m)
{
    return strcmp(m->name, "[vdso]") == 0 || strstr(m->name, "/libc.so") ||
           strstr(m->name, "/libc-") || strstr(m->name, "/ld-musl");
}

int x86_find_code(struct x86_code *code, const struct target *t, const struct mapping_list *maps)
{
    CLEANUP_FREE uint8_t *buf = malloc(CHUNK_BYTES);
    if (!buf)
        return -ENOMEM;
    *code = (struct x86_code){0};
    int unread = 0;
    for (int likely = 1; likely >= 0; likely--) {
        for (size_t i = 0; i < maps->count && !complete(code); i++) {
            const struct mapping *m = &maps->items[i];
            if (!is_fixed_code(m) || is_likely(m) != (likely == 1))
                continue;
            int r = search_mapping(code, t, m, buf);
            if (r)
                unread = r;
        }
    }
    if (complete(code))
        return 0;
    return unread ? unread : -ENOENT;
}
