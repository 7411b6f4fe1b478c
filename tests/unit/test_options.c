#include <criterion/criterion.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "tools/vmsnap/options.h"

static struct {
    bool flag;
    const char *string;
    int integer, duration_ms, choice;
    unsigned count;
    uint64_t size;
    struct option_list list, hazards;
} args;

static const char *const colours[] = {"red", "green", NULL};

static const char *const *hazards(void)
{
    static const char *const names[] = {"disks", "nested", NULL};
    return names;
}

static const struct option_spec specs[] = {
    {.name = "flag", .letter = 'f', .kind = OPTION_FLAG, .to.flag = &args.flag, .help = "a flag"},
    {.name = "string",
     .letter = 's',
     .kind = OPTION_STRING,
     .to.string = &args.string,
     .argument = "FILE",
     .help = "a string"},
    {.name = "integer",
     .kind = OPTION_INTEGER,
     .to.integer = &args.integer,
     .min = -5,
     .max = 19,
     .argument = "N",
     .help = "an integer"},
    {.name = "count",
     .kind = OPTION_COUNT,
     .to.count = &args.count,
     .min = 1,
     .max = 8,
     .argument = "N",
     .help = "a count"},
    {.name = "size",
     .kind = OPTION_SIZE,
     .to.size = &args.size,
     .argument = "SIZE",
     .help = "a size"},
    {.name = "wait",
     .kind = OPTION_DURATION,
     .to.duration_ms = &args.duration_ms,
     .min = 1,
     .max = 60000,
     .argument = "DURATION",
     .help = "a duration"},
    {.name = "colour",
     .kind = OPTION_CHOICE,
     .to.choice = &args.choice,
     .choices = colours,
     .argument = "COLOUR",
     .help = "a choice"},
    {.name = "item",
     .kind = OPTION_LIST,
     .to.list = &args.list,
     .argument = "ITEM",
     .help = "a list"},
    {.name = "allow",
     .kind = OPTION_LIST,
     .to.list = &args.hazards,
     .choices_of = hazards,
     .argument = "HAZARD",
     .help = "a list of known names"},
    {.name = NULL},
};

static const struct operand operands[] = {
    {.name = "IMAGE", .help = "the image"},
    {.name = "OUT", .help = "the output", .optional = true},
    {.name = NULL},
};

static const char *const usage[] = {"[OPTIONS] IMAGE [OUT]", NULL};

static struct command command = {
    .name = "try", .summary = "try it", .usage = usage, .operands = operands, .options = specs};

static struct command_line line;
static struct error error;

/* Parses the words given (NULL ends them) as a command line of `command`. */
static int parse(const char *first, ...)
{
    static char *argv[100]; /* line.rest points into it */
    memset(argv, 0, sizeof(argv));
    argv[0] = (char *)"try";
    int argc = 1;
    va_list ap;
    va_start(ap, first);
    for (const char *word = first; word; word = va_arg(ap, const char *))
        argv[argc++] = (char *)word;
    va_end(ap);
    memset(&args, 0, sizeof(args));
    memset(&error, 0, sizeof(error));
    args.choice = -1;
    return option_parse(&command, argc, argv, &line, &error);
}

/* The last parse was refused as a usage error with this cause. */
static void refused(int rc, const char *cause)
{
    cr_assert_eq(rc, -EINVAL);
    cr_assert_eq(error.exit_code, VMSNAP_EXIT_USAGE);
    cr_assert_str_eq(error.message, cause);
    cr_assert(error.hint[0]);
}

Test(options, each_kind_reaches_its_target)
{
    cr_assert_eq(parse("-f", "--string", "text", "--integer=-5", "--count", "8", "--size=64MiB",
                       "--wait", "1500ms", "--colour", "green", "--item", "a", "--item=b",
                       "--allow=disks", "image", NULL),
                 0, "%s", error.message);
    cr_assert(args.flag);
    cr_assert_str_eq(args.string, "text");
    cr_assert_eq(args.integer, -5);
    cr_assert_eq(args.count, 8);
    cr_assert_eq(args.size, 64u << 20);
    cr_assert_eq(args.duration_ms, 1500);
    cr_assert_eq(args.choice, 1);
    cr_assert_eq(args.list.count, 2);
    cr_assert_str_eq(args.list.items[1], "b");
    cr_assert_null(args.list.items[2]);
    cr_assert_str_eq(args.hazards.items[0], "disks");
    cr_assert_str_eq(line.operand[0], "image");
    cr_assert_null(line.operand[1]);
    cr_assert_null(line.rest);
}

Test(options, operands_and_options_mix)
{
    cr_assert_eq(parse("image", "-f", "out", "-s", "x", NULL), 0);
    cr_assert_eq(line.n_operands, 2);
    cr_assert_str_eq(line.operand[1], "out");
    cr_assert(args.flag);
    cr_assert_str_eq(args.string, "x");
}

Test(options, a_dash_is_an_operand)
{
    cr_assert_eq(parse("-", NULL), 0);
    cr_assert_str_eq(line.operand[0], "-");
}

Test(options, common_options_are_everywhere)
{
    cr_assert_eq(parse("--json", "-q", "-vv", "image", NULL), 0);
    cr_assert(line.json && line.quiet);
    cr_assert_eq(line.verbose, 2);
    cr_assert_eq(parse("image", NULL), 0);
    cr_assert(!line.json && !line.quiet && line.verbose == 0);
}

Test(options, help_wins_over_what_is_missing)
{
    cr_assert_eq(parse("--help", NULL), 0);
    cr_assert(line.help);
    cr_assert_eq(parse("-fh", "--nonsense", NULL), 0);
    cr_assert(line.help);
}

Test(options, dashes_start_the_rest_where_a_command_takes_one)
{
    command.rest = "VMM ARG...";
    cr_assert_eq(parse("image", "--", "qemu", "-m", "1G", "--", "--string", NULL), 0);
    cr_assert_eq(line.n_operands, 1);
    cr_assert_str_eq(line.rest[0], "qemu");
    cr_assert_str_eq(line.rest[3], "--");
    cr_assert_str_eq(line.rest[4], "--string");
    cr_assert_null(line.rest[5]);
    refused(parse("image", "--", NULL), "nothing follows '--' (VMM ARG...)");
    cr_assert_eq(parse("-s", "--", "image", NULL), 0);
    cr_assert_null(line.rest);
    cr_assert_eq(parse("image", "-s", "--", NULL), 0);
    cr_assert_null(line.rest);
}

Test(options, dashes_only_end_the_options_elsewhere)
{
    command.rest = NULL;
    cr_assert_eq(parse("--", "-f", "--string", NULL), 0);
    cr_assert_str_eq(line.operand[0], "-f");
    cr_assert_str_eq(line.operand[1], "--string");
    cr_assert(!args.flag);
}

Test(options, unknown_options_are_named)
{
    refused(parse("--nonsense", "image", NULL), "unknown option '--nonsense'");
    refused(parse("--nonsense=1", "image", NULL), "unknown option '--nonsense=1'");
    refused(parse("-fx", "image", NULL), "unknown option '-x'");
    refused(parse("--flag=1", "image", NULL), "option '--flag' takes no argument");
    refused(parse("image", "--string", NULL), "option '--string' needs an argument");
    refused(parse("image", "-s", NULL), "option '-s' needs an argument");
}

Test(options, names_are_not_abbreviated)
{
    refused(parse("--str", "x", "image", NULL), "unknown option '--str'");
    cr_assert_str_eq(error.hint, "did you mean --string?");
    refused(parse("--wai=1s", "image", NULL), "unknown option '--wai=1s'");
    refused(parse("--co=1", "image", NULL), "unknown option '--co=1'");
}

Test(options, operands_are_counted)
{
    refused(parse(NULL), "IMAGE is missing");
    refused(parse("a", "b", "c", NULL), "unexpected argument 'c'");
    refused(parse("", NULL), "IMAGE is empty");
    refused(parse("a", "--string", "", NULL), "--string: FILE is empty");
}

Test(options, required_options_are_required)
{
    static const struct option_spec needy[] = {
        {.name = "qmp",
         .kind = OPTION_STRING,
         .to.string = &args.string,
         .required = true,
         .argument = "SOCK",
         .help = "a socket"},
        {.name = NULL},
    };
    command.options = needy;
    int rc = parse("image", NULL);
    command.options = specs;
    refused(rc, "--qmp SOCK is missing");
    cr_assert_str_eq(error.hint, "vmsnap try [OPTIONS] IMAGE [OUT]; see 'vmsnap try --help'");
}

Test(options, numbers_are_plain_and_in_range)
{
    refused(parse("--integer", "20", "i", NULL), "--integer: 20 is not in -5 to 19");
    refused(parse("--integer", "-6", "i", NULL), "--integer: -6 is not in -5 to 19");
    refused(parse("--integer", "0x10", "i", NULL), "--integer: '0x10' is not a number");
    refused(parse("--integer", " 1", "i", NULL), "--integer: ' 1' is not a number");
    refused(parse("--integer", "", "i", NULL), "--integer: '' is not a number");
    refused(parse("--integer", "-", "i", NULL), "--integer: '-' is not a number");
    refused(parse("--integer", "99999999999999999999", "i", NULL),
            "--integer: '99999999999999999999' is not a number");
    refused(parse("--count", "0", "i", NULL), "--count: 0 is not in 1 to 8");
    refused(parse("--count", "4294967297", "i", NULL), "--count: 4294967297 is not in 1 to 8");
    refused(parse("--wait", "61s", "i", NULL), "--wait: 61000 ms is not in 1 to 60000 ms");
}

Test(options, names_come_from_their_list)
{
    refused(parse("--colour", "blue", "i", NULL), "--colour: unknown COLOUR 'blue'");
    cr_assert_str_eq(error.hint, "it is one of: red, green");
    refused(parse("--allow", "blue", "i", NULL), "--allow: unknown HAZARD 'blue'");
    cr_assert_str_eq(error.hint, "it is one of: disks, nested");
}

Test(options, a_list_has_an_end)
{
    command.rest = NULL;
    char *argv[2 * OPTION_LIST_MAX + 4] = {(char *)"try"};
    int argc = 1;
    for (int i = 0; i <= OPTION_LIST_MAX; i++) {
        argv[argc++] = (char *)"--item";
        argv[argc++] = (char *)"x";
    }
    argv[argc++] = (char *)"image";
    memset(&args, 0, sizeof(args));
    memset(&error, 0, sizeof(error));
    refused(option_parse(&command, argc, argv, &line, &error), "--item: given more than 64 times");
}

Test(options, sizes_take_the_published_units)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},           {"4096", 4096},      {"1K", 1024},
                {"1KiB", 1024},     {"64MiB", 64 << 20}, {"512M", 512u << 20},
                {"4G", 4ull << 30}, {"4GiB", 4ull << 30}};
    static const char *const bad[] = {"",     "K",   "1k", "1 M",  "-1",   "+1",
                                      "1.5G", "1MB", "1T", "0x10", "1GiBx"};
    uint64_t bytes;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        cr_assert_eq(option_read_size(good[i].text, &bytes), 0, "%s", good[i].text);
        cr_assert_eq(bytes, good[i].bytes, "%s", good[i].text);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        cr_assert_eq(option_read_size(bad[i], &bytes), -EINVAL, "%s", bad[i]);
    cr_assert_eq(option_read_size("99999999999G", &bytes), -ERANGE);
    cr_assert_eq(option_read_size("99999999999999999999", &bytes), -ERANGE);
    refused(parse("--size", "64mib", "i", NULL), "--size: '64mib' is not a size");
}

Test(options, durations_need_a_unit)
{
    int ms;
    cr_assert_eq(option_read_duration("250ms", &ms), 0);
    cr_assert_eq(ms, 250);
    cr_assert_eq(option_read_duration("10s", &ms), 0);
    cr_assert_eq(ms, 10000);
    static const char *const bad[] = {"", "10", "s", "1.5s", "-1s", "1m", "10 s", "1sec"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        cr_assert_eq(option_read_duration(bad[i], &ms), -EINVAL, "%s", bad[i]);
    cr_assert_eq(option_read_duration("9999999999s", &ms), -ERANGE);
    refused(parse("--wait", "10", "i", NULL), "--wait: '10' is not a duration");
}
