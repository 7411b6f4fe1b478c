/* options.c - see options.h. */
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1ull << 20)
#define MAX_RATE 1000000000ull

const char *const memory_kind_names[] = {"anon", "thp", "memfd", "hugetlbfs", "hugetlb", NULL};
static const char *const accel_names[] = {"auto", "kvm", "threads", NULL};
static const char *const pattern_names[] = {"idle", "random", "sequential", NULL};
static const char *const form_names[] = {"page_size", "page_size_kib", "none", NULL};

static const char help[] =
    "usage: minivm [OPTIONS]\n"
    "  --memory SIZE          guest memory (default 64M)\n"
    "  --kind KIND            anon (default, 4 KiB pages), thp, memfd, hugetlbfs (shared, 2 MiB),\n"
    "                         hugetlb (private, 2 MiB)\n"
    "  --hugetlb              --kind hugetlb\n"
    "  --regions N            memory in N regions with holes between them (default 1, at most 8)\n"
    "  --cpus N               vCPUs (default 1)\n"
    "  --accel kvm|threads|auto\n"
    "  --pattern PATTERN      idle, random (default), sequential, hot:SIZE\n"
    "  --rate N               writes per second and vCPU (default 0: as fast as it can)\n"
    "  --populate SIZE        fill that much of the memory with data first, and write in it alone\n"
    "  --skewed               each region begins 4 KiB behind a multiple of 2 MiB\n"
    "  --balloon SIZE         of it at the end: what the VMM discards and the guest takes back\n"
    "  --balloon-rate N       pages per second that are discarded (default 0)\n"
    "  --control SOCK         listen there for commands\n"
    "  --api SOCK             listen there for HTTP requests of Firecracker's API\n"
    "  --vmsnap-incoming PATH be restored: connect to PATH and wait for load-state\n"
    "  --seccomp              allow itself no more system calls than Firecracker does\n"
    "  --report FILE          append JSON lines\n"
    "Started from the files of a snapshot, as Firecracker is (README.md):\n"
    "  --vmstate FILE         the state; memory, regions and vCPUs are as it says\n"
    "  --memory-file FILE     its memory, mapped privately\n"
    "  --uffd-backend SOCK    or: its memory comes from who serves page faults there\n"
    "  --paused               do not run before a `cont`\n"
    "  --handoff-form FORM    page_size (default: since 1.12), page_size_kib (1.7 to 1.11), none\n"
    "  --handoff-early-empty  connect once for nothing before\n"
    "  --handoff-closes       close the connection after the message, as before 1.12\n"
    "  --no-remove-events     no EVENT_REMOVE, as before 1.12 without a balloon\n";

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
enum { OPT_HUGETLB = 8, OPT_REGIONS, OPT_FORM, OPT_EARLY_EMPTY, OPT_CLOSES, OPT_NO_REMOVE };
enum { OPT_PAUSED = 15, OPT_CONTROL, OPT_INCOMING, OPT_REPORT, OPT_VMSTATE, OPT_UFFD };
enum {
    OPT_MEMORY_FILE = 32,
    OPT_API,
    OPT_BALLOON,
    OPT_BALLOON_RATE,
    OPT_SECCOMP,
    OPT_SKEWED,
    OPT_HELP
};

static const struct option table[] = {
    {"memory", required_argument, NULL, OPT_MEMORY},
    {"kind", required_argument, NULL, OPT_KIND},
    {"cpus", required_argument, NULL, OPT_CPUS},
    {"accel", required_argument, NULL, OPT_ACCEL},
    {"pattern", required_argument, NULL, OPT_PATTERN},
    {"rate", required_argument, NULL, OPT_RATE},
    {"populate", required_argument, NULL, OPT_POPULATE},
    {"control", required_argument, NULL, OPT_CONTROL},
    {"api", required_argument, NULL, OPT_API},
    {"vmsnap-incoming", required_argument, NULL, OPT_INCOMING},
    {"report", required_argument, NULL, OPT_REPORT},
    {"hugetlb", no_argument, NULL, OPT_HUGETLB},
    {"regions", required_argument, NULL, OPT_REGIONS},
    {"balloon", required_argument, NULL, OPT_BALLOON},
    {"balloon-rate", required_argument, NULL, OPT_BALLOON_RATE},
    {"vmstate", required_argument, NULL, OPT_VMSTATE},
    {"memory-file", required_argument, NULL, OPT_MEMORY_FILE},
    {"uffd-backend", required_argument, NULL, OPT_UFFD},
    {"paused", no_argument, NULL, OPT_PAUSED},
    {"skewed", no_argument, NULL, OPT_SKEWED},
    {"seccomp", no_argument, NULL, OPT_SECCOMP},
    {"handoff-form", required_argument, NULL, OPT_FORM},
    {"handoff-early-empty", no_argument, NULL, OPT_EARLY_EMPTY},
    {"handoff-closes", no_argument, NULL, OPT_CLOSES},
    {"no-remove-events", no_argument, NULL, OPT_NO_REMOVE},
    {"help", no_argument, NULL, OPT_HELP},
    {NULL, 0, NULL, 0},
};

static bool take_name(const char *const *names, const char *text, unsigned *value)
{
    int n = find(names, text);
    *value = (unsigned)n;
    return n >= 0;
}

static bool take_number(const char *text, uint64_t max, unsigned *value)
{
    uint64_t number = 0;
    const char *end;
    bool ok = parse_number(text, max, &number, &end) && !*end && number > 0;
    *value = (unsigned)number;
    return ok;
}

/* An option that is a path, or NULL if it is none. */
static const char **path_of(struct options *o, int option)
{
    switch (option) {
    case OPT_CONTROL:
        return &o->control;
    case OPT_API:
        return &o->api;
    case OPT_INCOMING:
        return &o->incoming;
    case OPT_REPORT:
        return &o->report;
    case OPT_VMSTATE:
        return &o->vmstate;
    case OPT_MEMORY_FILE:
        return &o->memory_file;
    case OPT_UFFD:
        return &o->uffd_backend;
    default:
        return NULL;
    }
}

/* Likewise a yes or no. */
static bool *flag_of(struct options *o, int option)
{
    switch (option) {
    case OPT_PAUSED:
        return &o->paused;
    case OPT_EARLY_EMPTY:
        return &o->handoff_early_empty;
    case OPT_CLOSES:
        return &o->handoff_closes;
    case OPT_NO_REMOVE:
        return &o->no_remove_events;
    case OPT_SECCOMP:
        return &o->seccomp;
    case OPT_SKEWED:
        return &o->skewed;
    default:
        return NULL;
    }
}

static bool take_value(struct options *o, int option, const char *text)
{
    unsigned n = 0;
    const char *end = "";
    bool ok;
    switch (option) {
    case OPT_MEMORY:
        return parse_size(text, &o->memory_bytes);
    case OPT_HUGETLB:
        text = "hugetlb"; /* fallthrough */
    case OPT_KIND:
        ok = take_name(memory_kind_names, text, &n);
        o->kind = (enum memory_kind)n;
        return ok;
    case OPT_CPUS:
        return take_number(text, GUEST_MAX_CPUS, &o->cpus);
    case OPT_REGIONS:
        return take_number(text, GUEST_MAX_REGIONS, &o->regions);
    case OPT_ACCEL:
        ok = take_name(accel_names, text, &n);
        o->accel = (enum accel_wish)n;
        return ok;
    case OPT_PATTERN:
        return parse_pattern(o, text);
    case OPT_RATE:
        return parse_number(text, MAX_RATE, &o->rate, &end) && !*end;
    case OPT_BALLOON:
        return parse_size(text, &o->balloon_bytes);
    case OPT_BALLOON_RATE:
        return parse_number(text, MAX_RATE, &o->balloon_rate, &end) && !*end;
    case OPT_FORM:
        ok = take_name(form_names, text, &n);
        o->handoff_form = (enum handoff_form)n;
        return ok;
    default:
        return parse_size(text, &o->populate_bytes);
    }
}

static bool take(struct options *o, int option, const char *text)
{
    const char **path = path_of(o, option);
    bool *flag = flag_of(o, option);
    if (path)
        *path = text;
    else if (flag)
        *flag = true;
    return path || flag || take_value(o, option, text);
}

uint64_t options_region_unit(const struct options *o)
{
    bool huge = o->kind == MEMORY_HUGETLBFS || o->kind == MEMORY_HUGETLB;
    return huge ? 2 * MIB : MIB;
}

/* What speaks against the memory, or NULL. */
static const char *wrong_memory(const struct options *o)
{
    bool huge = o->kind == MEMORY_HUGETLBFS || o->kind == MEMORY_HUGETLB;
    if (o->memory_bytes % (huge ? 2 * MIB : GUEST_PAGE_BYTES) != 0)
        return "--memory must be whole pages of its kind";
    if (o->regions > 1 && o->memory_bytes / o->regions < options_region_unit(o))
        return "--memory is too little for that many --regions";
    if (o->memory_bytes > GUEST_MAX_RAM_BYTES - (o->regions - 1) * GUEST_HOLE_BYTES)
        return "--memory is too much for that many --regions";
    if (o->memory_bytes / GUEST_PAGE_BYTES < 4ull * o->cpus)
        return "--memory must be at least 4 pages per vCPU";
    if (o->populate_bytes > o->memory_bytes)
        return "--populate is more than --memory";
    if (o->populate_bytes && o->populate_bytes / GUEST_PAGE_BYTES < 4ull * o->cpus)
        return "--populate must be at least 4 pages per vCPU";
    uint64_t used = o->populate_bytes ? o->populate_bytes : o->memory_bytes;
    if (o->balloon_bytes > used || (used - o->balloon_bytes) / GUEST_PAGE_BYTES < 4ull * o->cpus)
        return "--balloon leaves less than 4 pages per vCPU";
    if (o->skewed && options_region_unit(o) > MIB)
        return "--skewed is for memory of 4 KiB pages";
    if (o->balloon_bytes && o->kind != MEMORY_ANON && o->kind != MEMORY_THP)
        return "--balloon needs private memory of 4 KiB pages: --kind anon or thp";
    return NULL;
}

static const char *wrong_start(const struct options *o)
{
    if (!o->vmstate != !(o->uffd_backend || o->memory_file) || (o->uffd_backend && o->memory_file))
        return "--vmstate needs --memory-file or --uffd-backend, and each of them needs it";
    if (o->vmstate && o->incoming)
        return "--vmsnap-incoming and --vmstate exclude each other";
    if (o->vmstate && (o->kind == MEMORY_MEMFD || o->kind == MEMORY_HUGETLBFS))
        return "memory that comes from a snapshot's file is private: --kind anon, thp or hugetlb";
    if (o->memory_file && o->kind == MEMORY_HUGETLB)
        return "memory of huge pages cannot be a file's: --uffd-backend";
    return NULL;
}

bool options_fit(const struct options *o)
{
    const char *wrong = wrong_memory(o);
    wrong = wrong ? wrong : wrong_start(o);
    if (wrong)
        fprintf(stderr, "minivm: %s\n", wrong);
    return !wrong;
}

bool options_parse(struct options *o, int argc, char **argv)
{
    *o = (struct options){
        .memory_bytes = 64 * MIB, .cpus = 1, .regions = 1, .pattern = GUEST_RANDOM};
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
    o->plain_mappings = o->vmstate != NULL;
    return options_fit(o);
}
