/*
 * firecracker_memory.c - see firecracker_memory.h.
 *
 * Facts from Firecracker's source (src/vmm/src/arch/x86_64, vstate/memory.rs):
 *   - a region is one mmap(): private and anonymous, of hugetlbfs, or of the memory file (of type
 *     File); without a reservation of swap; readable and writable. Before
 *     1.12 it has a page without access on both sides; later ones may lie side by side, and then
 *     the kernel joins them; since it looks for room from above, the second lies below the first.
 *   - guest memory goes from address 0 to a gap below 4 GiB, of 768 MiB up to version 1.12 and of
 *     1 GiB since PCI came; goes on at 4 GiB up to a gap from 256 GiB on, of 256 GiB (since then);
 *     and goes on behind that. So there are one to three regions, whose lengths the size tells.
 */
#include "common/vmm/firecracker_memory.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/vmm/firecracker.h"

#define GIB ((uint64_t)1 << 30)
#define MIB ((uint64_t)1 << 20)
#define REGIONS_MAX 64u
#define CANDIDATES_TOLD 6u
#define USER_END (1ull << 47)
#define ONE_REGION_MAX (3 * GIB) /* what is longer may be two regions that were joined */

/* The lengths of regions in the order of their offsets. */
struct layout {
    uint64_t bytes[3];
    unsigned n;
};

/* Those that memory of one size may have; one, if the version tells. */
struct layouts {
    uint64_t bytes;
    struct layout of[2]; /* the newer version's first */
    unsigned n;
};

/*
 * An arena of glibc's malloc: so many bytes from a multiple of it on, without a reservation like
 * guest memory, the first part of it open (132 KiB or more) and the rest without access. So one
 * that lies behind guest memory is joined to it (seen: Firecracker 1.14 linked with glibc, as its
 * releases are not).
 */
#define ARENA_BYTES (64 * MIB)

/* A stretch of mappings that are alike. */
struct stretch {
    uint64_t start, end;
};

struct stretch_list {
    struct stretch *items;
    size_t count;
};

/* ---- which mappings could be guest memory ---- */

/* A private file too: whether it can be saved is another question, with an answer of its own. */
static bool is_candidate(const struct mapping *m)
{
    bool nameless = m->inode == 0 && m->name[0] == '\0';
    return m->readable && m->writable && !m->executable && !m->shared && !m->io && !m->pfnmap &&
           (nameless || m->inode != 0 || m->hugetlb);
}

/* Guest memory is mapped without a reservation, thread stacks are not: what lies beside it is kept
 * apart. */
static bool goes_on(const struct mapping *m, const struct mapping *next)
{
    return next->start == m->end && next->page_bytes == m->page_bytes &&
           next->hugetlb == m->hugetlb && next->noreserve == m->noreserve &&
           next->inode == m->inode && next->dev_major == m->dev_major &&
           next->dev_minor == m->dev_minor &&
           (m->inode == 0 || m->hugetlb || next->offset == m->offset + (m->end - m->start));
}

/* What is left of a stretch if the open part of an arena, whose rest is `next`, was joined to it.
 */
static void cut_arena(struct stretch *s, const struct mapping *next)
{
    uint64_t arena = next->end - ARENA_BYTES;
    bool is_rest = next->start == s->end && next->noreserve && !next->readable &&
                   next->inode == 0 && !next->shared && next->end % ARENA_BYTES == 0 &&
                   next->end - next->start >= ARENA_BYTES / 2;
    if (is_rest && s->start < arena && arena < s->end)
        s->end = arena;
}

static int list_stretches(struct stretch_list *out, const struct mapping_list *maps,
                          struct error *e)
{
    *out =
        (struct stretch_list){.items = calloc(maps->count ? maps->count : 1, sizeof(*out->items))};
    if (!out->items)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot list the VMM's memory");
    const struct mapping *last = NULL;
    for (size_t i = 0; i < maps->count; i++) {
        const struct mapping *m = &maps->items[i];
        if (!is_candidate(m)) {
            if (last && last->noreserve && last->inode == 0 && !last->hugetlb)
                cut_arena(&out->items[out->count - 1], m);
            last = NULL;
            continue;
        }
        if (last && goes_on(last, m))
            out->items[out->count - 1].end = m->end;
        else
            out->items[out->count++] = (struct stretch){.start = m->start, .end = m->end};
        last = m;
    }
    return 0;
}

/* ---- which of them are ---- */

static void add(struct layout *l, uint64_t bytes)
{
    if (bytes)
        l->bytes[l->n++] = bytes;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static struct layout lay_out(uint64_t bytes, uint64_t below_4g, uint64_t below_256g)
{
    struct layout l = {.n = 0};
    uint64_t first = least(bytes, below_4g), second = least(bytes - first, below_256g);
    add(&l, first);
    add(&l, second);
    add(&l, bytes - first - second);
    return l;
}

/* The stretches of exactly that length: their number, and the first. */
static unsigned count_fits(const struct stretch_list *s, uint64_t bytes, const struct stretch **one)
{
    unsigned n = 0;
    for (size_t i = 0; i < s->count; i++)
        if (s->items[i].end - s->items[i].start == bytes) {
            *one = n ? *one : &s->items[i];
            n++;
        }
    return n;
}

/* True: each region of the layout can be one stretch only, and none that another is. */
static bool fits(const struct layout *l, const struct stretch_list *s, const struct stretch **out)
{
    for (unsigned i = 0; i < l->n; i++) {
        if (count_fits(s, l->bytes[i], &out[i]) != 1)
            return false;
        for (unsigned k = 0; k < i; k++)
            if (out[k] == out[i])
                return false;
    }
    return true;
}

static bool same_layout(const struct layout *a, const struct layout *b)
{
    return a->n == b->n && memcmp(a->bytes, b->bytes, a->n * sizeof(a->bytes[0])) == 0;
}

#define PCI_MINOR 13 /* 1.13 has the larger gap */

static struct layouts list_layouts(uint64_t bytes, const char *version)
{
    struct layouts l = {.bytes = bytes, .n = 1};
    struct layout newer = lay_out(bytes, ONE_REGION_MAX, 252 * GIB);
    struct layout older = lay_out(bytes, 4 * GIB - 768 * MIB, UINT64_MAX);
    unsigned major, minor;
    l.of[0] = newer;
    if (same_layout(&newer, &older))
        return l;
    if (sscanf(version, "%u.%u", &major, &minor) != 2)
        l.of[l.n++] = older;
    else if (major < 1 || (major == 1 && minor < PCI_MINOR))
        l.of[0] = older;
    return l;
}

/* The number of layouts that fit; *n stretches of the last that does. One stretch of more than 3
 * GiB is not certain if the version is not: a newer one has two regions there, which the kernel may
 * have joined. */
static unsigned choose(const struct stretch_list *s, const struct layouts *l,
                       const struct stretch **out, unsigned *n)
{
    unsigned n_fit = 0;
    for (unsigned i = 0; i < l->n; i++) {
        const struct stretch *found[3];
        if ((l->of[i].n == 1 && l->n > 1) || !fits(&l->of[i], s, found))
            continue;
        memcpy(out, found, l->of[i].n * sizeof(found[0]));
        *n = l->of[i].n;
        n_fit++;
    }
    return n_fit;
}

static int compare_size(const void *a, const void *b)
{
    const struct stretch *x = a, *y = b;
    uint64_t xs = x->end - x->start, ys = y->end - y->start;
    return xs < ys ? 1 : xs > ys ? -1 : 0;
}

/* What to say of a stretch that is all of memory: its regions, the first at its upper end. */
static void hint_joined(const struct stretch *s, const struct layouts *l, struct error *e)
{
    char maps[2][160] = {"", ""};
    for (unsigned i = 0; i < l->n; i++) {
        uint64_t end = s->end;
        size_t at = 0;
        for (unsigned k = 0; k < l->of[i].n; k++) {
            end -= l->of[i].bytes[k];
            at += (size_t)snprintf(maps[i] + at, sizeof(maps[i]) - at,
                                   " --map 0x%" PRIx64 ":0x%" PRIx64, end, l->of[i].bytes[k]);
        }
    }
    error_hint(
        e, "the kernel has joined its regions, most likely the second before the first:%s%s%s%s",
        maps[0], l->n > 1 ? " from Firecracker 1.13 on;" : "", maps[1], l->n > 1 ? " before" : "");
}

static const struct stretch *find_joined(const struct stretch_list *s, uint64_t bytes)
{
    const struct stretch *one = NULL;
    return bytes > ONE_REGION_MAX && count_fits(s, bytes, &one) == 1 ? one : NULL;
}

/* Nothing is certain: tells the largest, for the user to choose from. */
static int tell_candidates(struct stretch_list *s, const struct target *t, const struct layouts *l,
                           bool several, struct error *e)
{
    uint64_t bytes = l->bytes;
    char list[384] = "";
    size_t at = 0;
    qsort(s->items, s->count, sizeof(*s->items), compare_size);
    for (size_t i = 0; i < s->count && i < CANDIDATES_TOLD && at < sizeof(list); i++)
        at +=
            (size_t)snprintf(list + at, sizeof(list) - at, "%s0x%" PRIx64 ":0x%" PRIx64,
                             i ? ", " : "", s->items[i].start, s->items[i].end - s->items[i].start);
    error_set(e, VMSNAP_EXIT_USAGE, 0,
              "process %d: %s mappings make up %" PRIu64
              " MiB of guest memory for certain; its largest are (address:length) %s",
              (int)t->pid, several ? "more than one choice of" : "no", bytes / MIB,
              list[0] ? list : "none");
    const struct stretch *joined = find_joined(s, bytes);
    if (joined)
        hint_joined(joined, l, e);
    error_hint(e,
               "name them with --map ADDR:LEN[:NAME], repeated, from the lowest guest address on");
    return -EINVAL;
}

/* ---- what the user said ---- */

static int bad_map(const char *text, const char *what, struct error *e)
{
    error_set(e, VMSNAP_EXIT_USAGE, 0, "--map %.100s: %s", text, what);
    error_hint(e, "ADDR:LEN[:NAME], numbers in bytes, decimal or with 0x; whole MiB of length");
    return -EINVAL;
}

static bool take_name(struct region *r, const char *name)
{
    size_t len = strlen(name);
    if (len == 0 || len >= sizeof(r->name))
        return false;
    for (const char *p = name; *p; p++)
        if (*p <= 0x20 || *p >= 0x7f)
            return false;
    memcpy(r->name, name, len + 1);
    return true;
}

static int parse_map(const char *text, struct region *r, struct error *e)
{
    char *end = NULL;
    errno = 0;
    r->hva = strtoull(text, &end, 0);
    if (errno || end == text || *end != ':')
        return bad_map(text, "no ADDR", e);
    const char *length = end + 1;
    r->bytes = strtoull(length, &end, 0);
    if (errno || end == length || (*end && *end != ':'))
        return bad_map(text, "no LEN", e);
    if (r->bytes == 0 || r->bytes % MIB || r->hva % 4096 || r->hva == 0 || r->hva >= USER_END ||
        r->bytes > USER_END - r->hva)
        return bad_map(text, "not a range of memory", e);
    if (*end == ':' && !take_name(r, end + 1))
        return bad_map(text, "no good NAME", e);
    return 0;
}

static int check_against(const struct region_set *s, uint32_t i, const char *text, struct error *e)
{
    const struct region *r = &s->items[i];
    for (uint32_t k = 0; k < i; k++) {
        const struct region *o = &s->items[k];
        if (r->hva < o->hva + o->bytes && o->hva < r->hva + r->bytes)
            return bad_map(text, "overlaps another", e);
        if (strcmp(r->name, o->name) == 0)
            return bad_map(text, "the name is there twice", e);
    }
    return 0;
}

static void name_region(struct region *r, uint32_t i, uint32_t n)
{
    if (n == 1)
        snprintf(r->name, sizeof(r->name), "%s", FIRECRACKER_REGION_NAME);
    else
        snprintf(r->name, sizeof(r->name), "%s%" PRIu32, FIRECRACKER_REGION_NAME, i);
}

/* The order of what is longer can't be seen from its sum alone. */
static int check_layout(const struct region_set *s, uint32_t n, const struct layouts *l,
                        struct error *e)
{
    char older[64] = "";
    if (l->bytes <= ONE_REGION_MAX)
        return 0;
    for (unsigned i = 0; i < l->n; i++) {
        bool same = l->of[i].n == n;
        for (uint32_t k = 0; same && k < n; k++)
            same = s->items[k].bytes == l->of[i].bytes[k];
        if (same)
            return 0;
    }
    if (l->n > 1)
        snprintf(older, sizeof(older), " (up to Firecracker 1.12: %" PRIu64 " MiB)",
                 l->of[1].bytes[0] / MIB);
    error_set(e, VMSNAP_EXIT_USAGE, 0,
              "--map: %" PRIu64 " MiB of guest memory begin with a region of %" PRIu64
              " MiB%s, and the rest follows",
              l->bytes / MIB, l->of[0].bytes[0] / MIB, older);
    error_hint(e, "one --map for each, from the lowest guest address on; where the kernel has "
                  "joined them, the second usually lies before the first");
    return -EINVAL;
}

static int take_maps(struct region_set *out, const char *const *maps, uint32_t n,
                     const struct layouts *l, struct error *e)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct region *r = &out->items[i];
        int ret = parse_map(maps[i], r, e);
        if (!ret && !r->name[0])
            name_region(r, i, n);
        if (!ret)
            ret = check_against(out, i, maps[i], e);
        if (ret)
            return ret;
        sum += r->bytes;
    }
    if (sum == l->bytes)
        return check_layout(out, n, l, e);
    error_set(e, VMSNAP_EXIT_USAGE, 0,
              "--map: %" PRIu64 " MiB in all, but the VM has %" PRIu64 " MiB of memory", sum / MIB,
              l->bytes / MIB);
    error_hint(e,
               "one --map for each region, from the lowest guest address on; without any 'vmsnap "
               "check' finds them, or tells what there is to choose from");
    return -EINVAL;
}

/* ---- the whole ---- */

static int find_out(struct region_set *out, const struct mapping_list *maps, const struct target *t,
                    const struct layouts *l, struct error *e)
{
    struct stretch_list s;
    const struct stretch *found[3];
    unsigned n = 0;
    int ret = list_stretches(&s, maps, e);
    if (ret)
        return ret;
    unsigned n_fit = choose(&s, l, found, &n);
    if (n_fit != 1)
        ret = tell_candidates(&s, t, l, n_fit > 1, e);
    for (unsigned i = 0; !ret && i < n; i++) {
        struct region *r = &out->items[i];
        r->hva = found[i]->start;
        r->bytes = found[i]->end - found[i]->start;
        name_region(r, i, n);
    }
    out->count = ret ? 0 : n;
    free(s.items);
    return ret;
}

static int classify_all(struct region_set *s, const struct mapping_list *maps,
                        const struct target *t, struct error *e)
{
    int ret = 0;
    for (uint32_t i = 0; !ret && i < s->count; i++) {
        struct region *r = &s->items[i];
        r->max_bytes = r->bytes;
        ret = region_classify(r, t, maps, e);
        if (!ret && (r->hva % r->page_bytes || r->bytes % r->page_bytes))
            ret = bad_map(r->name, "does not fill whole huge pages", e);
    }
    return ret;
}

int firecracker_find_memory(struct region_set *out, const struct target *t, uint64_t bytes,
                            const char *version, const char *const *maps, struct error *e)
{
    const struct layouts layouts = list_layouts(bytes, version);
    struct mapping_list list = {0};
    uint32_t n = 0;
    while (maps && maps[n] && n < REGIONS_MAX)
        n++;
    if (n == REGIONS_MAX)
        return bad_map(maps[n - 1], "too many of them", e);
    *out = (struct region_set){.items = calloc(REGIONS_MAX, sizeof(*out->items))};
    if (!out->items)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot list the memory");
    for (uint32_t i = 0; i < REGIONS_MAX; i++)
        out->items[i].fd = -1;
    int ret = target_mappings(t, &list, e);
    if (!ret && n)
        ret = take_maps(out, maps, n, &layouts, e);
    else if (!ret)
        ret = find_out(out, &list, t, &layouts, e);
    if (!ret && n)
        out->count = n;
    if (!ret)
        ret = classify_all(out, &list, t, e);
    mapping_list_free(&list);
    if (ret)
        region_set_free(out);
    return ret;
}
