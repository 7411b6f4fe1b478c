/* help.c - `vmsnap NAME --help`, from the command's tables. */
#include <string.h>

#include "tools/vmsnap/options_common.h"

#define HELP_COLUMNS 80
#define HELP_INDENT 26 /* where the explanations begin */

/* Prints text from column HELP_INDENT on, broken at blanks. */
static void print_wrapped(FILE *f, const char *text)
{
    int column = HELP_INDENT;
    while (*text) {
        int word = (int)strcspn(text, " ");
        if (column > HELP_INDENT && column + 1 + word > HELP_COLUMNS) {
            fprintf(f, "\n%*s", HELP_INDENT, "");
            column = HELP_INDENT;
        }
        if (column > HELP_INDENT) {
            fputc(' ', f);
            column++;
        }
        fwrite(text, 1, (size_t)word, f);
        column += word;
        text += word;
        text += strspn(text, " ");
    }
    fputc('\n', f);
}

void option_print_entry(FILE *f, const char *left, const char *text)
{
    fprintf(f, "%-*s", HELP_INDENT, left);
    if (strlen(left) > HELP_INDENT - 2)
        fprintf(f, "\n%*s", HELP_INDENT, "");
    print_wrapped(f, text);
}

static void print_options(FILE *f, const struct option_spec *specs)
{
    for (; specs->name; specs++) {
        char left[128];
        char letter[8] = "    ";
        if (specs->letter)
            snprintf(letter, sizeof(letter), "-%c, ", specs->letter);
        snprintf(left, sizeof(left), "  %s--%s%s%s", letter, specs->name,
                 specs->argument ? " " : "", specs->argument ? specs->argument : "");
        option_print_entry(f, left, specs->help);
    }
}

void option_print_help(const struct command *command, FILE *f)
{
    for (int i = 0; command->usage[i]; i++)
        fprintf(f, "%s vmsnap %s %s\n", i ? "      " : "usage:", command->name, command->usage[i]);
    fprintf(f, "\n%s\n", command->summary);
    if (command->operands && command->operands->name)
        fputs("\narguments:\n", f);
    for (const struct operand *o = command->operands; o && o->name; o++) {
        char left[64];
        snprintf(left, sizeof(left), "  %s", o->name);
        option_print_entry(f, left, o->help);
    }
    if (command->options && command->options->name) {
        fputs("\noptions:\n", f);
        print_options(f, command->options);
    }
    fputs("\ncommon options:\n", f);
    print_options(f, option_common_specs);
    if (command->more_help) {
        fputc('\n', f);
        command->more_help(f);
    }
}
