#include "common/qemu/ramblock_parse.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

/* No x86 or Arm host maps more than this. */
#define LENGTH_MAX (1ull << 52)
#define LINE_MAX_BYTES 1024u

/* Copies the next line, without its end, to `line`. False at the end of the text or when the line
 * is longer than any that we understand (then *too_long). */
static bool next_line(const char **text, char *line, bool *too_long)
{
    if (!**text)
        return false;
    size_t len = strcspn(*text, "\r\n");
    if (len >= LINE_MAX_BYTES) {
        *too_long = true;
        return false;
    }
    memcpy(line, *text, len);
    line[len] = '\0';
    *text += len;
    while (**text == '\r' || **text == '\n')
        (*text)++;
    return true;
}

static int not_understood(struct error *e, const char *command, const char *line)
{
    error_set(e, VMSNAP_EXIT_TARGET, EPROTO, "cannot read QEMU's answer to \"%s\": \"%.100s\"",
              command, line);
    error_hint(e, "this QEMU is of a version that vmsnap does not know; QEMU 7.2 is known to work");
    return -EPROTO;
}

/* Grows an array by one zeroed element. NULL: out of memory, or more than RAMBLOCK_MAX. */
static void *add_item(void **items, size_t *count, size_t item_bytes)
{
    if (*count >= RAMBLOCK_MAX)
        return NULL;
    char *grown = realloc(*items, (*count + 1) * item_bytes);
    if (!grown)
        return NULL;
    *items = grown;
    return memset(grown + (*count)++ * item_bytes, 0, item_bytes);
}

/* Cuts blanks off the end; returns the length that is left. */
static size_t trim_end(char *line)
{
    size_t end = strlen(line);
    while (end > 0 && line[end - 1] == ' ')
        end--;
    line[end] = '\0';
    return end;
}

/* Takes the last blank-separated word off a line. NULL when there is none. */
static char *take_last_word(char *line)
{
    size_t end = trim_end(line), start = end;
    while (start > 0 && line[start - 1] != ' ')
        start--;
    if (start == end)
        return NULL;
    if (start > 0)
        line[start - 1] = '\0';
    return line + start;
}

static bool parse_hex(const char *word, uint64_t *value)
{
    char *end;
    if (!word || strncmp(word, "0x", 2) != 0 || !word[2] || word[2] == '-' || word[2] == '+')
        return false;
    errno = 0;
    *value = strtoull(word + 2, &end, 16);
    return errno == 0 && *end == '\0';
}

/* "4 KiB", "2 MiB", "1 GiB": the number's word, then the unit's. */
static bool parse_page_size(const char *number, const char *unit, uint64_t *bytes)
{
    char *end;
    uint64_t shift = 0;
    if (!number || !unit)
        return false;
    if (strcmp(unit, "KiB") == 0)
        shift = 10;
    else if (strcmp(unit, "MiB") == 0)
        shift = 20;
    else if (strcmp(unit, "GiB") == 0)
        shift = 30;
    uint64_t n = strtoull(number, &end, 10);
    if (!shift || *end || n == 0 || n > 1024)
        return false;
    *bytes = n << shift;
    return (*bytes & (*bytes - 1)) == 0;
}

/* The columns from the right, so that a name with blanks in it does no harm. */
static bool parse_block(char *line, bool has_hva, bool has_ro, struct ramblock_line *b)
{
    if (has_ro && !take_last_word(line))
        return false;
    b->hva = RAMBLOCK_NO_HVA;
    if (has_hva && (!parse_hex(take_last_word(line), &b->hva) || b->hva == 0))
        return false;
    if (!parse_hex(take_last_word(line), &b->total) || !parse_hex(take_last_word(line), &b->used) ||
        !parse_hex(take_last_word(line), &b->offset))
        return false;
    const char *unit = take_last_word(line);
    const char *number = take_last_word(line);
    if (!parse_page_size(number, unit, &b->page_bytes))
        return false;
    trim_end(line);
    const char *name = line + strspn(line, " ");
    if (number == line)
        name = ""; /* the number was the first word */
    if (strlen(name) >= sizeof(b->name))
        return false;
    memcpy(b->name, name, strlen(name) + 1);
    return b->used > 0 && b->used <= b->total && b->total <= LENGTH_MAX && b->used % 4096 == 0 &&
           b->total % 4096 == 0;
}

int ramblock_parse_list(const char *text, struct ramblock_line **out, size_t *count,
                        struct error *e)
{
    CLEANUP_FREE void *items = NULL;
    char line[LINE_MAX_BYTES] = "";
    bool too_long = false;
    size_t n = 0;
    if (!next_line(&text, line, &too_long) || !strstr(line, "Block Name") || !strstr(line, "PSize"))
        return not_understood(e, "info ramblock", line);
    bool has_hva = strstr(line, "HVA"), has_ro = strstr(line, " RO");
    while (next_line(&text, line, &too_long)) {
        struct ramblock_line *b = add_item(&items, &n, sizeof(*b));
        if (!b)
            return error_set(e, VMSNAP_EXIT_TARGET, E2BIG, "too many ramblocks");
        char copy[LINE_MAX_BYTES];
        memcpy(copy, line, sizeof(copy));
        if (!parse_block(copy, has_hva, has_ro, b))
            return not_understood(e, "info ramblock", line);
    }
    if (too_long || n == 0)
        return not_understood(e, "info ramblock", line);
    *out = take_ptr(&items);
    *count = n;
    return 0;
}

bool ramblock_name_fits(const char *idstr, const char *region)
{
    size_t a = strlen(idstr), b = strlen(region);
    if (b == 0 || a < b || strcmp(idstr + a - b, region) != 0)
        return false;
    return a == b || idstr[a - b - 1] == '/';
}

/* Cuts " @OFFSET", " KVM" and the like off a memory region's name. */
static bool parse_region_name(char *text, struct flat_range *r)
{
    char *at = strstr(text, " @");
    if (at) {
        char *end;
        errno = 0;
        r->offset = strtoull(at + 2, &end, 16);
        if (errno || end == at + 2 || (*end && *end != ' '))
            return false;
        *at = '\0';
    } else {
        char *blank = strrchr(text, ' '); /* "pc.ram KVM": which accelerator has a slot for it */
        if (blank && strcmp(blank, " KVM") == 0)
            *blank = '\0';
    }
    if (!*text || strlen(text) >= sizeof(r->region))
        return false;
    memcpy(r->region, text, strlen(text) + 1);
    return true;
}

/* "  START-LAST (prio N, TYPE): NAME". 1: RAM or ROM, in *r; 0: something else; -1: not that. */
static int parse_range(const char *line, struct flat_range *r)
{
    uint64_t start, last;
    char type[32];
    int at = 0;
    if (sscanf(line, " %16" SCNx64 "-%16" SCNx64 " (prio %*d, %31[^)]): %n", &start, &last, type,
               &at) != 3 ||
        at == 0 || last < start)
        return -1;
    const char *kind = strncmp(type, "nv-", 3) == 0 ? type + 3 : type;
    r->rom = strcmp(kind, "rom") == 0 || strcmp(kind, "romd") == 0;
    if (!r->rom && strcmp(kind, "ram") != 0)
        return 0; /* i/o, or a device's memory (ramd), which is no guest RAM */
    r->gpa = start;
    r->bytes = last - start + 1;
    char name[LINE_MAX_BYTES];
    snprintf(name, sizeof(name), "%s", line + at);
    if (r->bytes == 0 || !parse_region_name(name, r) || r->offset > LENGTH_MAX ||
        r->bytes > LENGTH_MAX)
        return -1;
    return 1;
}

/* Finds the flat view whose list of address spaces has "memory". */
static bool skip_to_system_view(const char **text, char *line, bool *too_long)
{
    while (next_line(text, line, too_long))
        if (strncmp(line, " AS \"memory\"", 12) == 0)
            return true;
    return false;
}

int ramblock_parse_flat(const char *text, struct flat_range **out, size_t *count, struct error *e)
{
    CLEANUP_FREE void *items = NULL;
    char line[LINE_MAX_BYTES] = "";
    bool too_long = false;
    size_t n = 0;
    if (!skip_to_system_view(&text, line, &too_long))
        return not_understood(e, "info mtree -f", line);
    while (next_line(&text, line, &too_long) && strncmp(line, "FlatView", 8) != 0) {
        struct flat_range r = {0};
        if (strncmp(line, "  ", 2) != 0)
            continue; /* " AS ...", " Root memory region: ..." */
        int kind = parse_range(line, &r);
        if (kind < 0)
            return not_understood(e, "info mtree -f", line);
        if (kind == 0)
            continue;
        struct flat_range *added = add_item(&items, &n, sizeof(r));
        if (!added)
            return error_set(e, VMSNAP_EXIT_TARGET, E2BIG, "too many guest-physical ranges");
        *added = r;
    }
    if (too_long || n == 0)
        return not_understood(e, "info mtree -f", line);
    *out = take_ptr(&items);
    *count = n;
    return 0;
}

bool ramblock_parse_gpa2hva(const char *text, uint64_t *hva)
{
    const char *is = strstr(text, ") is 0x");
    char word[32];
    return strncmp(text, "Host virtual address for 0x", 27) == 0 && is &&
           sscanf(is + 5, "%31s", word) == 1 && parse_hex(word, hva);
}
