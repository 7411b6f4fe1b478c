/*
 * reader.c - a reader of images written from docs/format.md alone, to keep that page and the
 * program honest: it shares no line with vmsnap, includes none of its headers and links none of its
 * code.
 *
 *     reader check IMAGE           checks everything; prints "ok N records, M of them unused"
 *     reader list IMAGE            regions and guest-physical addresses, one per line
 *     reader raw IMAGE REGION      the region's bytes on stdout
 *     reader description IMAGE     the description on stdout
 *     reader section IMAGE TYPE    the payload of a section on stdout
 *
 * Exit status 0, or 1 with the cause on stderr. It is made for tests: the image is read into memory
 * whole, and what is wrong ends it at once. Offsets stand here as they stand in the tables of the
 * page.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

enum { PAGE = 4096, CLUSTER = 16384, BLOCK = 4096, FRAME_MAX = 16512, TYPES = 7, ENTRIES = 32 };

static unsigned char *file;
static uint64_t size;

/* Found while checking; later code relies on it. */
static struct {
    uint64_t records_end, n_clusters, seed;
    struct {
        const unsigned char *at; /* payload */
        uint64_t bytes;
    } section[TYPES + 1]; /* by type */
    int may_be_newer;     /* reserved fields mean nothing to us */
} image;

static void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

static void die(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs("reader: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    exit(1);
}

static uint32_t u32(const unsigned char *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t u64(const unsigned char *p)
{
    return u32(p) | (uint64_t)u32(p + 4) << 32;
}

static void want(int holds, const char *what)
{
    if (!holds)
        die("%s", what);
}

static void want_zeros(const unsigned char *p, uint64_t n, const char *where)
{
    for (uint64_t i = 0; i < n && !image.may_be_newer; i++)
        if (p[i] != 0)
            die("%s: a reserved byte is not zero", where);
}

static void load(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END) != 0)
        die("%s: %s", path, strerror(errno));
    long end = ftell(f);
    want(end >= 2 * BLOCK, "shorter than a header and a trailer");
    size = (uint64_t)end;
    file = malloc(size);
    rewind(f);
    if (!file || fread(file, 1, size, f) != size)
        die("%s can't be read", path);
    fclose(f);
}

/* Header and trailer: the checksum of the block with its own field as zero. */
static int block_is_good(const unsigned char *block, unsigned checksum_at)
{
    unsigned char copy[BLOCK];
    memcpy(copy, block, BLOCK);
    memset(copy + checksum_at, 0, 8);
    return XXH3_64bits(copy, BLOCK) == u64(block + checksum_at);
}

static void check_header(void)
{
    const unsigned char *h = file;
    want(memcmp(h + 8, "VMSNAPIM", 8) == 0, "no image");
    want(u32(h + 20) <= 1, "made for a newer reader");
    want(block_is_good(h, 48), "header: checksum");
    want(u32(h) == 0x184D2A50 && u32(h + 4) == 4088, "header: skippable frame");
    want(u32(h + 20) >= 1 && u32(h + 16) >= u32(h + 20), "header: versions");
    want(u32(h + 40) == PAGE && u32(h + 44) == CLUSTER, "header: page or cluster size");
    image.may_be_newer = u32(h + 16) > 1;
    image.seed = u64(h + 24);
    want_zeros(h + 56, 4040, "header");
}

static void check_section(const unsigned char *entry, uint64_t at, uint64_t end)
{
    uint32_t type = u32(entry);
    uint64_t bytes = u64(entry + 16);
    want_zeros(entry + 4, 4, "section table");
    want(u64(entry + 8) == at && end - at >= 8 && bytes <= end - at - 8, "a section's place");
    want(u32(file + at) == 0x184D2A52 && u32(file + at + 4) == bytes, "a section's frame");
    want(XXH3_64bits(file + at, 8 + bytes) == u64(entry + 24), "a section's checksum");
    if (type < 1 || type > TYPES)
        return;
    want(image.section[type].at == NULL, "a section twice");
    image.section[type].at = file + at + 8;
    image.section[type].bytes = bytes;
}

static void check_trailer(void)
{
    const unsigned char *t = file + size - BLOCK;
    uint32_t n = u32(t + 96);
    want(memcmp(t + 8, "VMSNAPEN", 8) == 0 && block_is_good(t, 4088), "trailer: checksum");
    want(u32(t) == 0x184D2A53 && u32(t + 4) == 4088, "trailer: skippable frame");
    want(memcmp(t + 16, file + 24, 16) == 0, "trailer: image id");
    want(u64(t + 32) == size, "trailer: size of the file");
    want(n <= ENTRIES, "trailer: number of sections");
    want_zeros(t + 100, 4, "trailer");
    want_zeros(t + 104 + 32 * (uint64_t)n, 32 * (uint64_t)(ENTRIES - n), "section table");
    want_zeros(t + 1128, 2960, "trailer");
    image.n_clusters = u64(t + 48);
    image.records_end = u64(t + 56);
    uint64_t at = image.records_end, end = size - BLOCK;
    want(at >= BLOCK && at <= end, "trailer: end of the records");
    for (uint32_t i = 0; i < n; i++) {
        const unsigned char *entry = t + 104 + 32 * (uint64_t)i;
        check_section(entry, at, end);
        at += 8 + u64(entry + 16);
    }
    want(at == end, "bytes between sections and trailer");
    for (int type = 1; type <= TYPES; type++)
        want(image.section[type].at != NULL, "a section is missing");
}

/* ---- what the sections say ---- */

struct region {
    uint64_t bytes, first, n_clusters;
    char name[257];
};

static uint64_t n_regions(void)
{
    return image.section[1].bytes / 304;
}

static struct region region_at(uint64_t i)
{
    const unsigned char *p = image.section[1].at + 304 * i;
    struct region r = {.bytes = u64(p), .first = u64(p + 16)};
    r.n_clusters = r.bytes / CLUSTER + (r.bytes % CLUSTER != 0);
    memcpy(r.name, p + 40, 256);
    return r;
}

static void check_region(const unsigned char *p)
{
    uint32_t name_bytes = u32(p + 36), kind = u32(p + 28), page = u32(p + 24);
    want(u64(p) > 0 && u64(p) % PAGE == 0 && u64(p) < UINT64_C(1) << 63, "region: length");
    want(u64(p + 8) >= u64(p), "region: maximum");
    want(page >= PAGE && (page & (page - 1)) == 0, "region: page size");
    want(kind >= 1 && kind <= 3, "region: kind");
    want_zeros(p + 32, 4, "region");
    want_zeros(p + 296, 8, "region");
    want(name_bytes >= 1 && name_bytes <= 255, "region: length of the name");
    for (uint32_t i = 0; i < 256; i++)
        want(i < name_bytes ? p[40 + i] >= 0x20 && p[40 + i] <= 0x7e : p[40 + i] == 0,
             "region: name");
}

static void check_regions(void)
{
    const unsigned char *t = file + size - BLOCK;
    uint64_t next = 0, pages = 0, n = n_regions();
    want(image.section[1].bytes % 304 == 0 && n >= 1 && n <= 4096, "number of regions");
    for (uint64_t i = 0; i < n; i++) {
        check_region(image.section[1].at + 304 * i);
        struct region r = region_at(i);
        want(r.first == next && r.n_clusters <= image.n_clusters - next, "region: clusters");
        next += r.n_clusters;
        pages += r.bytes / PAGE;
        for (uint64_t j = 0; j < i; j++)
            want(strcmp(region_at(j).name, r.name) != 0, "two regions of one name");
    }
    want(next == image.n_clusters, "regions: number of clusters");
    uint64_t zero = u64(t + 64), stored = u64(t + 72), poisoned = u64(t + 80);
    want(zero <= pages && stored <= pages - zero && poisoned == pages - zero - stored,
         "trailer: pages");
}

static void check_addresses(void)
{
    const unsigned char *p = image.section[2].at, *end = p + image.section[2].bytes;
    uint64_t next = 0;
    want(image.section[2].bytes % 32 == 0, "addresses: length of the section");
    for (; p < end; p += 32) {
        uint64_t address = u64(p), bytes = u64(p + 8), offset = u64(p + 16);
        want(bytes > 0 && address >= next && bytes <= UINT64_MAX - address, "addresses: order");
        want(u32(p + 24) < n_regions(), "addresses: region");
        struct region r = region_at(u32(p + 24));
        want(offset <= r.bytes && bytes <= r.bytes - offset, "addresses: outside the region");
        want(image.may_be_newer || (u32(p + 28) & ~1u) == 0, "addresses: flags");
        next = address + bytes;
    }
}

static const struct region *region_of(uint64_t cluster, struct region *r)
{
    for (uint64_t i = 0; i < n_regions(); i++) {
        *r = region_at(i);
        if (cluster - r->first < r->n_clusters)
            return r;
    }
    die("cluster %llu is in no region", (unsigned long long)cluster);
}

static uint64_t cluster_bytes(uint64_t cluster)
{
    struct region r;
    uint64_t left = region_of(cluster, &r)->bytes - (cluster - r.first) * CLUSTER;
    return left < CLUSTER ? left : CLUSTER;
}

/* Hot list and poison list: clusters and pages that exist. Returns the number of bits. */
static uint64_t check_masks(int type, int ascending)
{
    const unsigned char *p = image.section[type].at;
    uint64_t n = image.section[type].bytes / 16, bits = 0;
    want(image.section[type].bytes % 16 == 0, "masks: length of the section");
    for (uint64_t i = 0; i < n; i++, p += 16) {
        uint64_t cluster = u64(p), mask = u64(p + 8);
        want(cluster < image.n_clusters && mask != 0, "masks: cluster");
        want(mask >> (cluster_bytes(cluster) / PAGE) == 0, "masks: a page that does not exist");
        want(!ascending || i == 0 || cluster > u64(p - 16), "masks: order");
        for (; mask; mask &= mask - 1)
            bits++;
    }
    return bits;
}

/* ---- records ---- */

static uint64_t index_entry(uint64_t cluster)
{
    return u64(image.section[3].at + 8 * cluster);
}

static void check_index(void)
{
    want(image.section[3].bytes / 8 == image.n_clusters && image.section[3].bytes % 8 == 0,
         "index: length");
    for (uint64_t c = 0; c < image.n_clusters; c++) {
        uint64_t entry = index_entry(c), at = entry >> 16, n = entry & 0xffff;
        want(entry == 1 || (at >= BLOCK && at <= image.records_end && n >= 1 && n <= FRAME_MAX &&
                            24 + n <= image.records_end - at),
             "index: an impossible entry");
    }
}

/* The record at `at`, whose frame has `n` bytes, into `out` (CLUSTER bytes).
 * Returns its cluster. */
static uint64_t read_record(uint64_t at, uint64_t n, unsigned char *out)
{
    const unsigned char *p = file + at;
    want(u32(p) == 0x184D2A51 && u32(p + 4) == 16, "record: skippable frame");
    want(XXH3_64bits_withSeed(p + 16, 8 + n, image.seed) == u64(p + 8), "record: checksum");
    uint64_t cluster = u64(p + 16);
    want(cluster < image.n_clusters, "record: cluster");
    want(u32(p + 24) == ZSTD_MAGICNUMBER && ZSTD_findFrameCompressedSize(p + 24, n) == n,
         "record: length of the frame");
    size_t got = ZSTD_decompress(out, cluster_bytes(cluster), p + 24, n);
    want(!ZSTD_isError(got) && got == cluster_bytes(cluster), "record: does not decode");
    return cluster;
}

/* A cluster as the index has it. */
static void read_cluster(uint64_t cluster, unsigned char *out)
{
    uint64_t entry = index_entry(cluster);
    memset(out, 0, CLUSTER);
    if (entry != 1)
        want(read_record(entry >> 16, entry & 0xffff, out) == cluster, "record: another cluster's");
}

/* All records, from the first to the last, without the index: then what the index says of them. */
static void walk_records(void)
{
    unsigned char out[CLUSTER];
    uint64_t n_records = 0, unused = 0, at = BLOCK;
    while (at < image.records_end) {
        uint64_t room = image.records_end - at;
        want(room > 24, "records: bytes that are none");
        size_t n = ZSTD_findFrameCompressedSize(file + at + 24, room - 24);
        want(!ZSTD_isError(n) && n >= 1 && n <= FRAME_MAX, "records: a frame without an end");
        uint64_t cluster = read_record(at, n, out);
        unused += index_entry(cluster) != (at << 16 | n);
        n_records++;
        at += 24 + n;
    }
    uint64_t used = 0;
    for (uint64_t c = 0; c < image.n_clusters; c++) {
        read_cluster(c, out);
        used += index_entry(c) != 1;
    }
    want(n_records - unused == used, "index: an entry that is no record");
    printf("ok %llu records, %llu of them unused\n", (unsigned long long)n_records,
           (unsigned long long)unused);
}

/* Poisoned pages decode as zeros; the others are counted as the trailer has them. */
static void count_pages(void)
{
    static const unsigned char zeros[PAGE];
    unsigned char out[CLUSTER];
    uint64_t stored = 0;
    for (uint64_t c = 0; c < image.n_clusters; c++) {
        read_cluster(c, out);
        for (uint64_t at = 0; at < cluster_bytes(c); at += PAGE)
            stored += memcmp(out + at, zeros, PAGE) != 0;
    }
    want(stored == u64(file + size - BLOCK + 72), "trailer: pages stored");
    const unsigned char *p = image.section[5].at, *end = p + image.section[5].bytes;
    for (; p < end; p += 16) {
        read_cluster(u64(p), out);
        for (uint64_t i = 0; i < CLUSTER / PAGE; i++)
            want(!(u64(p + 8) >> i & 1) || memcmp(out + i * PAGE, zeros, PAGE) == 0,
                 "a poisoned page has content");
    }
}

/* ---- what it is asked for ---- */

static void put(const void *p, uint64_t n)
{
    if (fwrite(p, 1, n, stdout) != n)
        die("writing: %s", strerror(errno));
}

static void list(void)
{
    const unsigned char *p = image.section[2].at, *end = p + image.section[2].bytes;
    for (uint64_t i = 0; i < n_regions(); i++) {
        struct region r = region_at(i);
        printf("region %llu %s\n", (unsigned long long)r.bytes, r.name);
    }
    for (; p < end; p += 32)
        printf("address %llu %llu %llu %s\n", (unsigned long long)u64(p),
               (unsigned long long)u64(p + 8), (unsigned long long)u64(p + 16),
               region_at(u32(p + 24)).name);
}

static void raw(const char *name)
{
    unsigned char out[CLUSTER];
    for (uint64_t i = 0; i < n_regions(); i++) {
        struct region r = region_at(i);
        if (strcmp(r.name, name) != 0)
            continue;
        for (uint64_t c = 0; c < r.n_clusters; c++) {
            read_cluster(r.first + c, out);
            put(out, cluster_bytes(r.first + c));
        }
        return;
    }
    die("no region %s", name);
}

static void section(const char *number)
{
    int type = atoi(number);
    if (type < 1 || type > TYPES)
        die("no section %s", number);
    put(image.section[type].at, image.section[type].bytes);
}

int main(int argc, char **argv)
{
    const char *what = argc > 2 ? argv[1] : "";
    if (argc != (strcmp(what, "raw") == 0 || strcmp(what, "section") == 0 ? 4 : 3))
        die("usage: reader check|list|description IMAGE, reader raw IMAGE REGION, reader section "
            "IMAGE TYPE");
    load(argv[2]);
    check_header();
    check_trailer();
    check_regions();
    check_index();
    check_addresses();
    check_masks(4, 0);
    want(check_masks(5, 1) == u64(file + size - BLOCK + 80), "trailer: poisoned pages");
    want(memchr(image.section[7].at, 0, image.section[7].bytes) == NULL, "description: a zero");
    if (strcmp(what, "check") == 0) {
        count_pages();
        walk_records();
    } else if (strcmp(what, "list") == 0) {
        list();
    } else if (strcmp(what, "description") == 0) {
        put(image.section[7].at, image.section[7].bytes);
    } else if (strcmp(what, "raw") == 0) {
        raw(argv[3]);
    } else if (strcmp(what, "section") == 0) {
        section(argv[3]);
    } else {
        die("what is '%s'?", what);
    }
    if (fflush(stdout) != 0)
        die("writing: %s", strerror(errno));
    free(file);
    return 0;
}
