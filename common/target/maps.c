/*
 * maps.c - parses /proc/PID/smaps and /proc/PID/maps (proc_pid_smaps(5)). A header line per
 * mapping; smaps adds "Key: value" lines that belong to the header before them. Unknown keys and
 * flags are skipped, so that newer kernels do no harm.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/target/target.h"

/* "start-end perms offset major:minor inode   name". False when the line is not of that form. */
static bool parse_header(const char *line, struct mapping *m)
{
    char perms[5];
    int name_at = 0;
    *m = (struct mapping){.page_bytes = 4096};
    int n = sscanf(
        line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %" SCNx32 ":%" SCNx32 " %" SCNu64 " %n",
        &m->start, &m->end, perms, &m->offset, &m->dev_major, &m->dev_minor, &m->inode, &name_at);
    if (n < 7 || m->end <= m->start)
        return false;
    m->readable = perms[0] == 'r';
    m->writable = perms[1] == 'w';
    m->executable = perms[2] == 'x';
    m->shared = perms[3] == 's';
    if (name_at > 0)
        snprintf(m->name, sizeof(m->name), "%.*s", (int)sizeof(m->name) - 1, line + name_at);
    m->name[strcspn(m->name, "\n")] = '\0';
    return true;
}

static void parse_flag(const char *flag, struct mapping *m)
{
    const struct {
        char name[3];
        bool *value;
    } flags[] = {
        {"dc", &m->dontfork},     {"mg", &m->mergeable}, {"hg", &m->hugepage},   {"lo", &m->locked},
        {"um", &m->uffd_missing}, {"uw", &m->uffd_wp},   {"ui", &m->uffd_minor}, {"io", &m->io},
        {"pf", &m->pfnmap},       {"ht", &m->hugetlb},   {"nr", &m->noreserve},
    };
    for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
        if (strcmp(flag, flags[i].name) == 0)
            *flags[i].value = true;
    }
}

static void parse_flags(char *text, struct mapping *m)
{
    char *rest = NULL;
    for (char *flag = strtok_r(text, " \n", &rest); flag; flag = strtok_r(NULL, " \n", &rest))
        parse_flag(flag, m);
}

/* "Key:   123 kB" or "VmFlags: rd wr ...". */
static void parse_detail(char *line, struct mapping *m)
{
    char *colon = strchr(line, ':');
    if (!colon)
        return;
    *colon = '\0';
    char *value = colon + 1;
    if (strcmp(line, "VmFlags") == 0)
        parse_flags(value, m);
    else if (strcmp(line, "KernelPageSize") == 0)
        m->page_bytes = strtoull(value, NULL, 10) * 1024;
    else if (strcmp(line, "AnonHugePages") == 0 || strcmp(line, "ShmemPmdMapped") == 0)
        m->anon_huge_bytes += strtoull(value, NULL, 10) * 1024;
}

static int append(struct mapping_list *list, size_t *capacity, const struct mapping *m)
{
    if (list->count == *capacity) {
        size_t n = *capacity ? *capacity * 2 : 64;
        struct mapping *items = reallocarray(list->items, n, sizeof(*items));
        if (!items)
            return -ENOMEM;
        list->items = items;
        *capacity = n;
    }
    list->items[list->count++] = *m;
    return 0;
}

int mapping_list_parse(FILE *f, struct mapping_list *out)
{
    struct mapping_list list = {0};
    size_t capacity = 0, size = 0;
    CLEANUP_FREE char *line = NULL;
    int r = 0;
    while (r == 0 && getline(&line, &size, f) >= 0) {
        struct mapping m;
        bool is_detail = line[0] >= 'A' && line[0] <= 'Z'; /* addresses are in small letters */
        if (!is_detail && parse_header(line, &m))
            r = append(&list, &capacity, &m);
        else if (list.count > 0)
            parse_detail(line, &list.items[list.count - 1]);
        else
            r = -EINVAL; /* not such a file */
    }
    if (r == 0 && ferror(f))
        r = -EIO;
    if (r == 0 && list.count == 0)
        r = -ESRCH; /* a process without memory has ended */
    if (r) {
        mapping_list_free(&list);
        return r;
    }
    *out = list;
    return 0;
}

void mapping_list_free(struct mapping_list *list)
{
    free(list->items);
    *list = (struct mapping_list){0};
}

const struct mapping *mapping_find(const struct mapping_list *list, uint64_t hva)
{
    size_t low = 0, high = list->count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const struct mapping *m = &list->items[mid];
        if (hva < m->start)
            high = mid;
        else if (hva >= m->end)
            low = mid + 1;
        else
            return m;
    }
    return NULL;
}
