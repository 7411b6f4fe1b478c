/*
 * options.h - a command and its options as tables. Parsing, --help and the usage errors all come
 * from the tables; a test holds the man page and the bash completion against them.
 *
 * A new command: one file cmd_NAME.c that defines `const struct command command_NAME`, its
 * declaration in commands.h, its line in main.c's table, its file in tools/CMakeLists.txt, its
 * section in docs/vmsnap.1, its words in tools/completion/vmsnap. The values land in a file-scope
 * struct of the command, so that the compiler checks each target's type:
 *
 *     static struct { const char *qmp_path; uint64_t buffer_bytes; struct option_list allow; }
 *         args = {.buffer_bytes = 64 << 20};
 *
 *     static const struct option_spec options[] = {
 *         {.name = "qmp", .kind = OPTION_STRING, .to.string = &args.qmp_path,
 *          .argument = "SOCK", .required = true, .help = "the guest's QMP socket"},
 *         {.name = "buffer", .kind = OPTION_SIZE, .to.size = &args.buffer_bytes, .argument =
 * "SIZE", .help = "hard cap of page buffers (default 64MiB)"},
 *         {.name = NULL},
 *     };
 *
 * What names a file says so (`file`): named twice, one of them to be written, it is refused.
 *
 * Every command has --json, -q/--quiet, -v/--verbose and -h/--help without listing them.
 */
#ifndef VMSNAP_TOOLS_OPTIONS_H
#define VMSNAP_TOOLS_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/error.h"

enum option_kind {
    OPTION_FLAG,     /* to.flag: true when given */
    OPTION_REPEATED, /* to.integer: how often the flag was given */
    OPTION_STRING,   /* to.string: points into argv */
    OPTION_INTEGER,  /* to.integer: decimal, min to max */
    OPTION_COUNT,    /* to.count: the same, unsigned */
    OPTION_SIZE,     /* to.size: bytes; K, M, G, KiB, MiB, GiB (all powers of 1024) or none */
    OPTION_DURATION, /* to.duration_ms: "500ms", "10s"; a unit must be there */
    OPTION_CHOICE,   /* to.choice: the index in `choices` */
    OPTION_LIST,     /* to.list: repeatable; only names of `choices` where that is set */
};

/* Whether an option or operand names a file, and what is done with that (named_files.h). */
enum file_use {
    FILE_NONE, /* none */
    FILE_READ,
    FILE_WRITTEN,
};

#define OPTION_LIST_MAX 64
struct option_list {
    const char *items[OPTION_LIST_MAX + 1]; /* NULL-terminated */
    size_t count;
};

struct option_spec {
    const char *name; /* without the dashes; NULL ends a table */
    char letter;      /* short form, or 0 */
    enum option_kind kind;
    union {
        bool *flag;
        const char **string;
        int *integer;
        unsigned *count;
        uint64_t *size;
        int *duration_ms;
        int *choice;
        struct option_list *list;
    } to;
    int64_t min, max;           /* INTEGER, COUNT, SIZE, DURATION (ms); both 0: what the type holds,
                                   from 0 on */
    const char *const *choices; /* CHOICE, LIST: NULL-terminated */
    const char *const *(*choices_of)(void); /* the same, for a list made at run time */
    bool required;
    enum file_use file;   /* STRING */
    const char *argument; /* its name in the help: "SIZE", "FILE" (completed as a file) */
    const char *help;     /* no capital, no final stop */
};

struct operand {
    const char *name; /* "IMAGE"; NULL ends a table */
    const char *help;
    bool optional; /* only after the required ones */
    enum file_use file;
};

#define OPERANDS_MAX 8

/* What a parsed command line holds beside the values that went to the command's own struct. */
struct command_line {
    const char *operand[OPERANDS_MAX]; /* NULL where it was not given */
    unsigned n_operands;
    char **rest; /* what follows `--`, NULL-terminated; NULL when no `--` was given */
    bool help, json, quiet;
    int verbose; /* 0, 1, 2 */
};

struct command {
    const char *name;
    const char *summary;      /* one line for `vmsnap --help` */
    const char *const *usage; /* what follows "vmsnap NAME", NULL-terminated */
    const struct operand *operands;
    const struct option_spec *options;
    const char *rest; /* "VMM ARG...": what `--` introduces; NULL: `--` only ends options */
    void (*more_help)(FILE *f); /* printed below the options; may be NULL */
    bool has_guest;             /* its errors say what became of the guest */
    bool publishes;             /* done even if the report of it can't be written: exit 3, not 1 */

    /*
     * Does the work. Returns the exit code (0, 3, or the VMM's own status), or -errno with *e
     * filled: main() then reports *e and exits with e->exit_code. For a usage error that the tables
     * can't express: `return option_usage_error(e, "...")`.
     */
    int (*run)(const struct command_line *line, struct error *e);
};

/*
 * Parses argv[1..] (argv[0] is the command's name). 0, or -EINVAL with exit code 2, the cause and a
 * hint in *e. With --help nothing is checked beyond it. Not reentrant (getopt_long).
 */
int option_parse(const struct command *command, int argc, char **argv, struct command_line *line,
                 struct error *e);

/* Fills *e with exit code 2. Returns -EINVAL. */
int option_usage_error(struct error *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* `vmsnap NAME --help`. */
void option_print_help(const struct command *command, FILE *f);

/* One entry of a help text: `left` ("  --level N"), and what it is, wrapped. */
void option_print_entry(FILE *f, const char *left, const char *text);

/* The values' own grammar: 0 or -EINVAL (not a number, no such unit), -ERANGE (too large). */
int option_read_size(const char *text, uint64_t *bytes);
int option_read_duration(const char *text, int *ms);
int option_read_integer(const char *text, int64_t *value);

#endif
