#include "tools/vmsnap/options.h"

#include <assert.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "tools/vmsnap/named_files.h"
#include "tools/vmsnap/options_common.h"

#define SPECS_MAX 48 /* options of one command, the common ones included */
#define FIRST_LONG 256

static struct {
    bool help, json, quiet;
    int verbose;
} common;

const struct option_spec option_common_specs[] = {
    {.name = "json",
     .kind = OPTION_FLAG,
     .to.flag = &common.json,
     .help = "print results as JSON, one object per line; errors too, on stderr"},
    {.name = "quiet",
     .letter = 'q',
     .kind = OPTION_FLAG,
     .to.flag = &common.quiet,
     .help = "no warnings, no progress, no closing line"},
    {.name = "verbose",
     .letter = 'v',
     .kind = OPTION_REPEATED,
     .to.integer = &common.verbose,
     .help = "explain what is done; twice: in detail"},
    {.name = "help",
     .letter = 'h',
     .kind = OPTION_FLAG,
     .to.flag = &common.help,
     .help = "show this and exit"},
    {.name = NULL},
};

int option_usage_error(struct error *e, const char *fmt, ...)
{
    char text[sizeof(e->message)];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    error_set(e, VMSNAP_EXIT_USAGE, 0, "%s", text);
    return -EINVAL;
}

int option_read_integer(const char *text, int64_t *value)
{
    /* strtoll also takes blanks, a plus sign, hexadecimal; we do not. */
    const char *digits = text[0] == '-' ? text + 1 : text;
    if (!*digits || digits[strspn(digits, "0123456789")])
        return -EINVAL;
    errno = 0;
    long long n = strtoll(text, NULL, 10);
    if (errno)
        return -ERANGE;
    *value = n;
    return 0;
}

/* Splits "12ms" into 12 and "ms". */
static int read_number(const char *text, uint64_t *value, const char **unit)
{
    size_t digits = strspn(text, "0123456789");
    if (digits == 0)
        return -EINVAL;
    errno = 0;
    *value = strtoull(text, NULL, 10);
    if (errno)
        return -ERANGE;
    *unit = text + digits;
    return 0;
}

int option_read_size(const char *text, uint64_t *bytes)
{
    static const struct {
        const char *name;
        unsigned shift;
    } units[] = {{"", 0}, {"K", 10}, {"M", 20}, {"G", 30}, {"KiB", 10}, {"MiB", 20}, {"GiB", 30}};
    uint64_t value;
    const char *unit;
    int rc = read_number(text, &value, &unit);
    if (rc)
        return rc;
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        if (strcmp(unit, units[i].name) != 0)
            continue;
        if (value > (uint64_t)INT64_MAX >> units[i].shift)
            return -ERANGE;
        *bytes = value << units[i].shift;
        return 0;
    }
    return -EINVAL;
}

int option_read_duration(const char *text, int *ms)
{
    uint64_t value;
    const char *unit;
    int rc = read_number(text, &value, &unit);
    if (rc)
        return rc;
    uint64_t scale = strcmp(unit, "ms") == 0 ? 1 : strcmp(unit, "s") == 0 ? 1000 : 0;
    if (scale == 0)
        return -EINVAL;
    if (value > INT_MAX / scale)
        return -ERANGE;
    *ms = (int)(value * scale);
    return 0;
}

/* Whether the value lies in the option's range; the range of the target's type when it has none. */
static int check_range(const struct option_spec *spec, int64_t value, int64_t type_max,
                       struct error *e)
{
    bool open = spec->min == 0 && spec->max == 0;
    int64_t min = open ? 0 : spec->min;
    int64_t max = open || spec->max > type_max || spec->max == 0 ? type_max : spec->max;
    if (value >= min && value <= max)
        return 0;
    const char *unit = spec->kind == OPTION_DURATION ? " ms" : "";
    if (max == type_max)
        return option_usage_error(e, "--%s: %" PRId64 "%s is less than %" PRId64 "%s", spec->name,
                                  value, unit, min, unit);
    return option_usage_error(e, "--%s: %" PRId64 "%s is not in %" PRId64 " to %" PRId64 "%s",
                              spec->name, value, unit, min, max, unit);
}

/* The names that an option takes, NULL-terminated; NULL: any. */
static const char *const *choices_of(const struct option_spec *spec)
{
    return spec->choices_of ? spec->choices_of() : spec->choices;
}

static int find_choice(const struct option_spec *spec, const char *text, int *index,
                       struct error *e)
{
    const char *const *choices = choices_of(spec);
    char known[512] = "";
    size_t used = 0;
    for (int i = 0; choices[i]; i++) {
        if (strcmp(choices[i], text) == 0) {
            *index = i;
            return 0;
        }
        int n = snprintf(known + used, sizeof(known) - used, "%s%s", i ? ", " : "", choices[i]);
        if (n > 0 && used + (size_t)n < sizeof(known))
            used += (size_t)n;
    }
    option_usage_error(e, "--%s: unknown %s '%s'", spec->name, spec->argument, text);
    error_hint(e, "it is one of: %s", known);
    return -EINVAL;
}

static int store_number(const struct option_spec *spec, const char *text, struct error *e)
{
    int64_t value;
    int rc = option_read_integer(text, &value);
    if (rc == 0) {
        rc = check_range(spec, value, spec->kind == OPTION_COUNT ? UINT_MAX : INT_MAX, e);
        if (rc == 0 && spec->kind == OPTION_COUNT)
            *spec->to.count = (unsigned)value;
        else if (rc == 0)
            *spec->to.integer = (int)value;
        return rc;
    }
    return option_usage_error(e, "--%s: '%s' is not a number", spec->name, text);
}

static int store_size(const struct option_spec *spec, const char *text, struct error *e)
{
    uint64_t value;
    if (option_read_size(text, &value)) {
        option_usage_error(e, "--%s: '%s' is not a size", spec->name, text);
        error_hint(e, "write it as 512K, 64MiB or 1G");
        return -EINVAL;
    }
    int rc = check_range(spec, (int64_t)value, INT64_MAX, e);
    if (rc == 0)
        *spec->to.size = value;
    return rc;
}

static int store_duration(const struct option_spec *spec, const char *text, struct error *e)
{
    int value;
    if (option_read_duration(text, &value)) {
        option_usage_error(e, "--%s: '%s' is not a duration", spec->name, text);
        error_hint(e, "write it as 500ms or 10s");
        return -EINVAL;
    }
    int rc = check_range(spec, value, INT_MAX, e);
    if (rc == 0)
        *spec->to.duration_ms = value;
    return rc;
}

static int store_in_list(const struct option_spec *spec, const char *text, struct error *e)
{
    struct option_list *list = spec->to.list;
    int index;
    if (choices_of(spec)) {
        int rc = find_choice(spec, text, &index, e);
        if (rc)
            return rc;
    }
    if (list->count == OPTION_LIST_MAX)
        return option_usage_error(e, "--%s: given more than %d times", spec->name, OPTION_LIST_MAX);
    list->items[list->count++] = text;
    list->items[list->count] = NULL;
    return 0;
}

static int store(const struct option_spec *spec, const char *text, struct error *e)
{
    switch (spec->kind) {
    case OPTION_FLAG:
        *spec->to.flag = true;
        return 0;
    case OPTION_REPEATED:
        ++*spec->to.integer;
        return 0;
    case OPTION_STRING:
        if (!*text)
            return option_usage_error(e, "--%s: %s is empty", spec->name, spec->argument);
        *spec->to.string = text;
        return 0;
    case OPTION_INTEGER:
    case OPTION_COUNT:
        return store_number(spec, text, e);
    case OPTION_SIZE:
        return store_size(spec, text, e);
    case OPTION_DURATION:
        return store_duration(spec, text, e);
    case OPTION_CHOICE:
        return find_choice(spec, text, spec->to.choice, e);
    case OPTION_LIST:
        return store_in_list(spec, text, e);
    }
    assert(!"a kind that the table does not know");
    return -EINVAL;
}

/* The tables in the form that getopt_long() wants. */
struct grammar {
    const struct option_spec *specs[SPECS_MAX];
    struct option longs[SPECS_MAX + 1];
    char shorts[2 + 2 * SPECS_MAX + 1];
    bool seen[SPECS_MAX];
    size_t count;
    bool dashes; /* `--` ended the options */
};

static void grammar_add(struct grammar *g, const struct option_spec *specs)
{
    for (; specs->name; specs++) {
        assert(g->count < SPECS_MAX);
        bool takes_argument = specs->kind != OPTION_FLAG && specs->kind != OPTION_REPEATED;
        g->longs[g->count] = (struct option){
            .name = specs->name,
            .has_arg = takes_argument ? required_argument : no_argument,
            .val = FIRST_LONG + (int)g->count,
        };
        if (specs->letter) {
            size_t n = strlen(g->shorts);
            g->shorts[n] = specs->letter;
            g->shorts[n + 1] = takes_argument ? ':' : '\0';
        }
        g->specs[g->count++] = specs;
    }
}

/* The number in the grammar of what getopt_long() returned, or -1. */
static int grammar_find(const struct grammar *g, int code)
{
    for (size_t i = 0; i < g->count; i++)
        if (code == FIRST_LONG + (int)i || (g->specs[i]->letter && code == g->specs[i]->letter))
            return (int)i;
    return -1;
}

/* getopt_long() takes unambiguous beginnings for the whole name. We do not: a name that a later
 * version adds must not change what a script means. */
static bool is_abbreviated(const char *token, const char *name)
{
    size_t len = strlen(name);
    if (strncmp(token, "--", 2) != 0)
        return false;
    return strncmp(token + 2, name, len) != 0 || (token[2 + len] && token[2 + len] != '=');
}

static int add_operand(const struct command *command, struct command_line *line, const char *text,
                       struct error *e)
{
    unsigned max = 0;
    while (command->operands && command->operands[max].name)
        max++;
    assert(max <= OPERANDS_MAX);
    if (line->n_operands >= max) {
        option_usage_error(e, "unexpected argument '%s'", text);
        if (command->rest)
            error_hint(e, "the command line of the VMM comes after --");
        return -EINVAL;
    }
    if (!*text)
        return option_usage_error(e, "%s is empty", command->operands[line->n_operands].name);
    line->operand[line->n_operands++] = text;
    return 0;
}

static int refuse_option(int code, const char *token, struct error *e)
{
    if (code == ':')
        return option_usage_error(e, "option '%s' needs an argument", token);
    const char *equals = strchr(token, '=');
    if (strncmp(token, "--", 2) == 0 && equals && optopt)
        return option_usage_error(e, "option '%.*s' takes no argument", (int)(equals - token),
                                  token);
    if (strncmp(token, "--", 2) == 0)
        return option_usage_error(e, "unknown option '%s'", token);
    return option_usage_error(e, "unknown option '-%c'", optopt);
}

static int parse_all(struct grammar *g, const struct command *command, int argc, char **argv,
                     struct command_line *line, struct error *e)
{
    optind = 0; /* glibc: start over */
    opterr = 0;
    for (;;) {
        int at = optind > 0 ? optind : 1;
        const char *token = argv[at];
        int code = getopt_long(argc, argv, g->shorts, g->longs, NULL);
        if (code == -1) {
            g->dashes = optind > at;
            return 0;
        }
        int rc;
        int index = grammar_find(g, code);
        if (code == 1) {
            rc = add_operand(command, line, optarg, e);
        } else if (index < 0) {
            rc = refuse_option(code, token, e);
        } else if (code >= FIRST_LONG && is_abbreviated(token, g->specs[index]->name)) {
            rc = option_usage_error(e, "unknown option '%s'", token);
            error_hint(e, "did you mean --%s?", g->specs[index]->name);
        } else {
            g->seen[index] = true;
            rc = store(g->specs[index], optarg, e);
        }
        if (rc || common.help)
            return rc;
    }
}

/* What follows `--`: the VMM's line, or operands that begin with a dash. */
static int take_rest(const struct grammar *g, const struct command *command, int argc, char **argv,
                     struct command_line *line, struct error *e)
{
    if (g->dashes && command->rest) {
        line->rest = argv + optind;
        if (!*line->rest)
            return option_usage_error(e, "nothing follows '--' (%s)", command->rest);
        return 0;
    }
    for (int i = optind; i < argc; i++) {
        int rc = add_operand(command, line, argv[i], e);
        if (rc)
            return rc;
    }
    return 0;
}

static int missing(const struct command *command, struct error *e, const char *option,
                   const char *name)
{
    int rc = option_usage_error(e, "%s%s%s is missing", option, *option ? " " : "", name);
    error_hint(e, "vmsnap %s %s; see 'vmsnap %s --help'", command->name, command->usage[0],
               command->name);
    return rc;
}

static int check_complete(const struct grammar *g, const struct command *command,
                          const struct command_line *line, struct error *e)
{
    for (size_t i = 0; i < g->count; i++)
        if (g->specs[i]->required && !g->seen[i]) {
            char option[64];
            snprintf(option, sizeof(option), "--%s", g->specs[i]->name);
            return missing(command, e, option, g->specs[i]->argument);
        }
    for (unsigned i = 0; command->operands && command->operands[i].name; i++)
        if (i >= line->n_operands && !command->operands[i].optional)
            return missing(command, e, "", command->operands[i].name);
    return 0;
}

int option_parse(const struct command *command, int argc, char **argv, struct command_line *line,
                 struct error *e)
{
    /* "-": operands come in their place; ":": a missing argument is told apart. */
    struct grammar g = {.shorts = "-:"};
    grammar_add(&g, option_common_specs);
    if (command->options)
        grammar_add(&g, command->options);
    memset(&common, 0, sizeof(common));
    *line = (struct command_line){0};

    int rc = parse_all(&g, command, argc, argv, line, e);
    line->help = common.help;
    line->json = common.json;
    line->quiet = common.quiet;
    line->verbose = common.verbose;
    if (rc == 0 && !line->help)
        rc = take_rest(&g, command, argc, argv, line, e);
    if (rc == 0 && !line->help)
        rc = check_complete(&g, command, line, e);
    if (rc == 0 && !line->help)
        rc = named_files_check(command, line, e);
    if (rc)
        error_hint(e, "see 'vmsnap %s --help'", command->name);
    return rc;
}
