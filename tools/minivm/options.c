/* options.c - see options.h. */
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1ull << 20)
#define MAX_RATE 1000000000ull

const char *const memory_kind_names[] = {"anon", "thp", "memfd", "hugetlbfs", NULL};
static const char *const accel_names[] = {"auto", "kvm", "threads", NULL};
static const char *const pattern_names[] = {"idle", "random", "sequential", NULL};

static const char help[] =
    "usage: minivm [OPTIONS]\n"
    "  --memory SIZE          guest memory (default 64M)\n"
    "  --kind KIND            anon (default, 4 KiB pages), thp, memfd, hugetlbfs\n"
    "  --cpus N               vCPUs (default 1)\n"
    "  --accel kvm|threads|auto\n"
    "  --pattern PATTERN      idle, random (default), sequential, hot:SIZE\n"
    "  --rate N               writes per second and vCPU (default 0: as fast as it can)\n"
    "  --populate SIZE        fill that much of the memory with data first, and write in it alone\n"
    "  --control SOCK         listen there for commands\n"
    "  --vmsnap-incoming PATH be restored: connect to PATH and wait for load-state\n"
    "  --report FILE          append JSON lines\n";

/* -1: none of them. */
static int find(const char *const *names, const char *text)
{
    for (int i = 0; names[i]; i++)
        if (strcmp(names[i], text) == 0)
            return i;
    return -1;
}

static bool parse_number(const char *text, uint64_t max, uint64_t *value, const char **end)
{
    char *stop;
    errno = 0;
    *value = strtoull(text, &stop, 10);
    *end = stop;
    return text[0] >= '0' && text[0] <= '9' && errno == 0 && *value <= max;
}

/* A number of bytes with K, M, G or KiB, MiB, GiB behind it; whole pages. */
static bool parse_size(const char *text, uint64_t *bytes)
{
    static const char *const units[] = {"", "K", "M", "G", NULL};
    char unit[5] = "";
    const char *end;
    if (!parse_number(text, GUEST_MAX_RAM_BYTES, bytes, &end) || strlen(end) > 3)
        return false;
    strcpy(unit, end);
    if (strlen(unit) == 3 && strcmp(unit + 1, "iB") == 0)
        unit[1] = 0;
    int power = find(units, unit);
    if (power < 0 || *bytes > GUEST_MAX_RAM_BYTES >> 10 * power)
        return false;
    *bytes <<= 10 * power;
    return *bytes % GUEST_PAGE_BYTES == 0;
}

static bool parse_pattern(struct options *o, const char *text)
{
    if (strncmp(text, "hot:", 4) == 0) {
        o->pattern = GUEST_RANDOM;
        return parse_size(text + 4, &o->hot_bytes) && o->hot_bytes > 0;
    }
    int n = find(pattern_names, text);
    o->pattern = (enum guest_pattern)n;
    o->hot_bytes = 0;
    return n >= 0;
}

enum { OPT_MEMORY = 1, OPT_KIND, OPT_CPUS, OPT_ACCEL, OPT_PATTERN, OPT_RATE, OPT_POPULATE };
enum { OPT_CONTROL = 16, OPT_INCOMING, OPT_REPORT, OPT_HELP };

static const struct option table[] = {
    {"memory", required_argument, NULL, OPT_MEMORY},
    {"kind", required_argument, NULL, OPT_KIND},
    {"cpus", required_argument, NULL, OPT_CPUS},
    {"accel", required_argument, NULL, OPT_ACCEL},
    {"pattern", required_argument, NULL, OPT_PATTERN},
    {"rate", required_argument, NULL, OPT_RATE},
    {"populate", required_argument, NULL, OPT_POPULATE},
    {"control", required_argument, NULL, OPT_CONTROL},
    {"vmsnap-incoming", required_argument, NULL, OPT_INCOMING},
    {"report", required_argument, NULL, OPT_REPORT},
    {"help", no_argument, NULL, OPT_HELP},
    {NULL, 0, NULL, 0},
};

static bool take_name(const char *const *names, const char *text, unsigned *value)
{
    int n = find(names, text);
    *value = (unsigned)n;
    return n >= 0;
}

static bool take(struct options *o, int option, const char *text)
{
    unsigned n = 0;
    uint64_t number = 0;
    const char *end = "";
    bool ok = true;
    switch (option) {
    case OPT_MEMORY:
        return parse_size(text, &o->memory_bytes);
    case OPT_KIND:
        ok = take_name(memory_kind_names, text, &n);
        o->kind = (enum memory_kind)n;
        return ok;
    case OPT_CPUS:
        ok = parse_number(text, GUEST_MAX_CPUS, &number, &end) && !*end && number > 0;
        o->cpus = (unsigned)number;
        return ok;
    case OPT_ACCEL:
        ok = take_name(accel_names, text, &n);
        o->accel = (enum accel_wish)n;
        return ok;
    case OPT_PATTERN:
        return parse_pattern(o, text);
    case OPT_RATE:
        return parse_number(text, MAX_RATE, &o->rate, &end) && !*end;
    case OPT_POPULATE:
        return parse_size(text, &o->populate_bytes);
    case OPT_CONTROL:
        o->control = text;
        return true;
    case OPT_INCOMING:
        o->incoming = text;
        return true;
    default:
        o->report = text;
        return true;
    }
}

static bool fits_together(const struct options *o)
{
    uint64_t unit = o->kind == MEMORY_HUGETLBFS ? 2 * MIB : GUEST_PAGE_BYTES;
    const char *wrong = NULL;
    if (o->memory_bytes % unit != 0)
        wrong = "--memory must be whole pages of its kind";
    else if (o->memory_bytes / GUEST_PAGE_BYTES < 4ull * o->cpus)
        wrong = "--memory must be at least 4 pages per vCPU";
    else if (o->populate_bytes > o->memory_bytes)
        wrong = "--populate is more than --memory";
    else if (o->populate_bytes && o->populate_bytes / GUEST_PAGE_BYTES < 4ull * o->cpus)
        wrong = "--populate must be at least 4 pages per vCPU";
    if (wrong)
        fprintf(stderr, "minivm: %s\n", wrong);
    return !wrong;
}

bool options_parse(struct options *o, int argc, char **argv)
{
    *o = (struct options){.memory_bytes = 64 * MIB, .cpus = 1, .pattern = GUEST_RANDOM};
    int option, index = 0;
    while ((option = getopt_long(argc, argv, "", table, &index)) != -1) {
        if (option == '?')
            return false;
        if (option == OPT_HELP) {
            fputs(help, stdout);
            exit(0);
        }
        if (!take(o, option, optarg)) {
            fprintf(stderr, "minivm: '%s' is no value of --%s\n", optarg, table[index].name);
            return false;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "minivm: what is '%s'?\n", argv[optind]);
        return false;
    }
    return fits_together(o);
}
