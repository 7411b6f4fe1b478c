/*
 * Evidence for the place of a block, from the strongest down:
 *
 *  1. an address that QEMU says: `gpa2hva` for blocks that the guest sees, the HVA column of
 *     `info ramblock` from QEMU 8.0 on (placement_set, the caller asks);
 *  2. QEMU's own records: a ramblock's record lies on its main heap and holds, side by side, the
 *     host address, the offset, used and total length that `info ramblock` prints, and the name.
 *     The three numbers and the name identify it; the address must lie in a free stretch. What
 *     does not fit all of this is not taken for a record;
 *  3. a size that one free stretch and one block have, and no other of either;
 *  4. content: of several equal stretches the only one that starts like an option ROM (55 AA) is
 *     that of the only block that is one.
 *
 * Each placed block takes its stretch (or is cut out of a longer one: neighbours with equal flags
 * merge), which may make the next size unique, so 3 is run again after 4.
 */
#include "common/qemu/ramblock_place.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

#define HEAP_CHUNK_BYTES (1u << 20)
#define HEAP_MAX_BYTES (4ull << 30)
#define RECORD_WORDS_BEFORE 4u /* host address at most so far before the offset */
#define RECORD_BYTES_AFTER 64u /* name at most so far after the total length */

static int no_memory(struct error *e)
{
    return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot place the ramblocks");
}

/* True when `b` goes on where `a` ends, in the same file or both in none. */
static bool continues(const struct mapping *a, const struct mapping *b)
{
    if (a->end != b->start || a->inode != b->inode || a->dev_major != b->dev_major ||
        a->dev_minor != b->dev_minor || a->shared != b->shared)
        return false;
    return a->inode == 0 || a->offset + (a->end - a->start) == b->offset;
}

int span_list_find(struct span_list *out, const struct mapping_list *maps, struct error *e)
{
    memset(out, 0, sizeof(*out));
    /* Cutting a block out of a stretch leaves at most one more: room for that. */
    out->items = calloc(maps->count + RAMBLOCK_MAX, sizeof(*out->items));
    if (!out->items)
        return no_memory(e);
    const struct mapping *last = NULL;
    for (size_t i = 0; i < maps->count; i++) {
        const struct mapping *m = &maps->items[i];
        if (!m->dontfork)
            continue;
        if (last && continues(last, m))
            out->items[out->count - 1].end = m->end;
        else
            out->items[out->count++] = (struct span){.start = m->start, .end = m->end};
        last = m;
    }
    return 0;
}

void span_list_free(struct span_list *spans)
{
    free(spans->items);
    memset(spans, 0, sizeof(*spans));
}

/* The free stretch that holds [start, start+len), or NULL. */
static struct span *span_holding(const struct span_list *spans, uint64_t start, uint64_t len)
{
    for (size_t i = 0; i < spans->count; i++) {
        struct span *s = &spans->items[i];
        if (start >= s->start && start < s->end && len <= s->end - start)
            return s;
    }
    return NULL;
}

/* Takes [start, start+len) out of a stretch, leaving what is before and after it. */
static void span_cut(struct span_list *spans, struct span *s, uint64_t start, uint64_t len)
{
    uint64_t end = s->end;
    s->end = start;
    if (start + len < end)
        spans->items[spans->count++] = (struct span){.start = start + len, .end = end};
}

int placement_set(struct placement *p, uint64_t hva, const char *how, struct span_list *spans)
{
    struct span *s = span_holding(spans, hva, p->block->total);
    if (!s)
        return -EINVAL;
    span_cut(spans, s, hva, p->block->total);
    p->hva = hva;
    p->how = how;
    return 0;
}

/* How many free stretches are exactly `len` long; *one is one of them. */
static size_t spans_of_size(const struct span_list *spans, uint64_t len, const struct span **one)
{
    size_t n = 0;
    for (size_t i = 0; i < spans->count; i++) {
        if (spans->items[i].end - spans->items[i].start == len) {
            *one = &spans->items[i];
            n++;
        }
    }
    return n;
}

static size_t unplaced_of_size(const struct placement *items, size_t count, uint64_t len)
{
    size_t n = 0;
    for (size_t i = 0; i < count; i++)
        n += items[i].hva == RAMBLOCK_NO_HVA && items[i].block->total == len;
    return n;
}

/* Evidence 3, until nothing more follows from it. */
static void place_by_size(struct placement *items, size_t count, struct span_list *spans)
{
    bool progress;
    do {
        progress = false;
        for (size_t i = 0; i < count; i++) {
            uint64_t len = items[i].block->total;
            const struct span *one;
            if (items[i].hva != RAMBLOCK_NO_HVA || unplaced_of_size(items, count, len) != 1 ||
                spans_of_size(spans, len, &one) != 1)
                continue;
            placement_set(&items[i], one->start, "size", spans);
            progress = true;
        }
    } while (progress);
}

/* What a scan of the heap has found for one block. */
struct record {
    uint64_t hva;
    unsigned found; /* different addresses */
};

/* True when the name, with its end, stands shortly after the three numbers. */
static bool name_follows(const char *after, size_t avail, const char *name)
{
    if (avail > RECORD_BYTES_AFTER + REGION_NAME_MAX)
        avail = RECORD_BYTES_AFTER + REGION_NAME_MAX;
    const char *hit = memmem(after, avail, name, strlen(name) + 1);
    return hit && (size_t)(hit - after) <= RECORD_BYTES_AFTER;
}

/* Looks whether words[at..at+2] are the numbers of the block's record. */
static void match_record(const struct placement *p, const struct span_list *spans,
                         const uint64_t *words, size_t at, size_t n_words, struct record *r)
{
    const struct ramblock_line *b = p->block;
    if (words[at + 2] != b->total || words[at + 1] != b->used || words[at] != b->offset)
        return;
    if (!name_follows((const char *)(words + at + 3), (n_words - at - 3) * 8, b->name))
        return;
    for (size_t k = 1; k <= RECORD_WORDS_BEFORE && k <= at; k++) {
        uint64_t hva = words[at - k];
        if (hva % 4096 != 0 || !span_holding(spans, hva, b->total) || (r->found && r->hva == hva))
            continue;
        r->hva = hva;
        r->found++;
    }
}

/* All bits of the lengths of unplaced blocks: a word with another bit is none of them. That spares
 * nearly every word of the heap the comparison with each block. */
static uint64_t length_bits(const struct placement *items, size_t count)
{
    uint64_t bits = 0;
    for (size_t i = 0; i < count; i++)
        bits |= items[i].hva == RAMBLOCK_NO_HVA ? items[i].block->total : 0;
    return bits;
}

/* Looks for records among the words. */
static void scan_words(const struct placement *items, size_t count, const struct span_list *spans,
                       const uint64_t *words, size_t n_words, struct record *records)
{
    uint64_t bits = length_bits(items, count);
    for (size_t w = 0; w + 3 < n_words; w++) {
        if (words[w + 2] == 0 || (words[w + 2] & ~bits))
            continue;
        for (size_t i = 0; i < count; i++)
            if (items[i].hva == RAMBLOCK_NO_HVA)
                match_record(&items[i], spans, words, w, n_words, &records[i]);
    }
}

/* Scans one mapping of the heap for the records of all unplaced blocks. Chunks overlap by what a
 * record can need, so that none is cut; a record found twice counts once. */
static int scan_mapping(const struct placement *items, size_t count, const struct span_list *spans,
                        const struct target *t, const struct mapping *m, uint64_t *buf,
                        struct record *records)
{
    const size_t overlap = 1024;
    for (uint64_t at = m->start; at < m->end; at += HEAP_CHUNK_BYTES - overlap) {
        uint64_t len = m->end - at < HEAP_CHUNK_BYTES ? m->end - at : HEAP_CHUNK_BYTES;
        ssize_t got = target_read(t, at, buf, len);
        if (got == -EFAULT) /* the heap ends here now: a VM that has just started gives some back */
            return 0;
        if (got < 0)
            return (int)got;
        scan_words(items, count, spans, buf, (size_t)got / 8, records);
    }
    return 0;
}

/* Evidence 2. QEMU makes its blocks on the main thread, whose heap is "[heap]". */
static int place_by_record(struct placement *items, size_t count, struct span_list *spans,
                           const struct target *t, const struct mapping_list *maps, struct error *e)
{
    CLEANUP_FREE uint64_t *buf = malloc(HEAP_CHUNK_BYTES);
    CLEANUP_FREE struct record *records = calloc(count, sizeof(*records));
    if (!buf || !records)
        return no_memory(e);
    for (size_t i = 0; i < maps->count; i++) {
        const struct mapping *m = &maps->items[i];
        if (strcmp(m->name, "[heap]") != 0 || m->end - m->start > HEAP_MAX_BYTES)
            continue;
        int r = scan_mapping(items, count, spans, t, m, buf, records);
        if (r < 0)
            return error_set(e, VMSNAP_EXIT_TARGET, -r, "cannot read the heap of process %d",
                             (int)t->pid);
    }
    for (size_t i = 0; i < count; i++)
        if (items[i].hva == RAMBLOCK_NO_HVA && records[i].found == 1)
            placement_set(&items[i], records[i].hva, "record", spans);
    return 0;
}

static bool is_option_rom(const char *name)
{
    size_t len = strlen(name);
    return strncmp(name, "/rom@", 5) != 0 && strchr(name, '/') && len > 4 &&
           strcmp(name + len - 4, ".rom") == 0;
}

/* Of the free stretches of that size the only one that starts with 55 AA, or NULL. */
static const struct span *only_rom_span(const struct span_list *spans, uint64_t len,
                                        const struct target *t)
{
    const struct span *found = NULL;
    for (size_t i = 0; i < spans->count; i++) {
        const struct span *s = &spans->items[i];
        unsigned char head[2] = {0};
        if (s->end - s->start != len || target_read(t, s->start, head, 2) != 2 || head[0] != 0x55 ||
            head[1] != 0xaa)
            continue;
        if (found)
            return NULL;
        found = s;
    }
    return found;
}

/* Evidence 4. */
static void place_by_content(struct placement *items, size_t count, struct span_list *spans,
                             const struct target *t)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t len = items[i].block->total;
        size_t roms = 0;
        for (size_t j = 0; j < count; j++)
            roms += items[j].hva == RAMBLOCK_NO_HVA && items[j].block->total == len &&
                    is_option_rom(items[j].block->name);
        if (items[i].hva != RAMBLOCK_NO_HVA || roms != 1 || !is_option_rom(items[i].block->name))
            continue;
        const struct span *s = only_rom_span(spans, len, t);
        if (s)
            placement_set(&items[i], s->start, "content", spans);
    }
}

static const struct placement *first_unplaced(const struct placement *items, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (items[i].hva == RAMBLOCK_NO_HVA && items[i].block->name[0])
            return &items[i];
    return NULL;
}

int placement_rest(struct placement *items, size_t count, struct span_list *spans,
                   const struct target *t, const struct mapping_list *maps, struct error *e)
{
    if (first_unplaced(items, count)) {
        int r = place_by_record(items, count, spans, t, maps, e);
        if (r < 0)
            return r;
    }
    place_by_size(items, count, spans);
    if (first_unplaced(items, count)) {
        place_by_content(items, count, spans, t);
        place_by_size(items, count, spans);
    }
    const struct placement *p = first_unplaced(items, count);
    if (!p)
        return 0;
    const struct span *any;
    size_t n = spans_of_size(spans, p->block->total, &any);
    error_set(e, VMSNAP_EXIT_TARGET, 0,
              "cannot tell where the ramblock \"%s\" (%llu bytes) lies in process %d: %zu mappings "
              "come into question",
              p->block->name, (unsigned long long)p->block->total, (int)t->pid, n);
    return -EINVAL;
}
