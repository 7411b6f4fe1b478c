/* main.c - finds the command, parses its options, runs it, reports its error. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/progress.h"
#include "tools/vmsnap/commands.h"
#include "tools/vmsnap/report.h"

/* In the order of `vmsnap --help`. */
static const struct command *const commands[] = {
    &command_snapshot, &command_restore, &command_import, &command_info,
    &command_verify,   &command_export,  &command_check,  NULL,
};

static void print_help(FILE *f)
{
    fputs("usage: vmsnap COMMAND [OPTIONS] ...\n"
          "       vmsnap --version | --help\n"
          "\n"
          "Live snapshots of running virtual machines, and their restore on demand.\n"
          "\n"
          "commands:\n",
          f);
    for (int i = 0; commands[i]; i++)
        fprintf(f, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fputs("\nvmsnap COMMAND --help explains a command; the whole is in vmsnap(1).\n", f);
}

static const struct command *find_command(const char *name)
{
    for (int i = 0; commands[i]; i++)
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
    return NULL;
}

/* Whether errors are to be JSON, known before the options are parsed: an error in them counts. */
static bool asks_for_json(char **argv)
{
    for (; *argv && strcmp(*argv, "--") != 0; argv++)
        if (strcmp(*argv, "--json") == 0)
            return true;
    return false;
}

static int fail(const struct error *e, bool with_guest)
{
    report_error(e, with_guest);
    return e->exit_code ? e->exit_code : VMSNAP_EXIT_FAILED;
}

/* The exit code once the command has done its work: results that got lost are not a success. */
static int finish(const struct command *command, int code)
{
    int rc = report_finish();
    if (rc == 0 || code != VMSNAP_EXIT_DONE)
        return code;
    struct error e = {0};
    error_set(&e, command && command->publishes ? VMSNAP_EXIT_WARNINGS : VMSNAP_EXIT_FAILED, -rc,
              "%s, but its result could not be written",
              command && command->publishes ? "done" : "the command ended");
    long vmm_pid;
    report_get_guest(&e.guest, &vmm_pid);
    if (e.guest != GUEST_UNTOUCHED && vmm_pid)
        error_hint(&e, "the guest's process is %ld", vmm_pid);
    return fail(&e, e.guest != GUEST_UNTOUCHED);
}

static int run_command(const struct command *command, int argc, char **argv)
{
    struct error e = {0};
    struct command_line line;
    if (option_parse(command, argc, argv, &line, &e))
        return fail(&e, false);
    if (line.help) {
        option_print_help(command, stdout);
        return finish(NULL, VMSNAP_EXIT_DONE);
    }
    report_setup(line.json, line.quiet);
    log_set_level(line.quiet ? LOG_QUIET : line.verbose > LOG_DEBUG ? LOG_DEBUG : line.verbose);
    int rc = command->run(&line, &e);
    if (rc >= 0)
        return finish(command, rc);
    if (e.exit_code == VMSNAP_EXIT_USAGE)
        error_hint(&e, "see 'vmsnap %s --help'", command->name);
    return fail(&e, command->has_guest);
}

/* What we open must not become one of the three: an image as standard input would be lost where a
 * detached server leaves the terminal. Reading and writing there fail as if they were closed. */
static void fill_standard_fds(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            (void)!open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);
}

static void do_nothing(int number)
{
    (void)number;
}

/* A reader that went away is an error of write(), a file over `ulimit -f` too. Not SIG_IGN: a VMM
 * that we start would inherit that. SIGUSR1 asks for a progress line and never ends us. */
static void setup_signals(void)
{
    struct sigaction action = {.sa_handler = do_nothing, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGPIPE, &action, NULL);
    sigaction(SIGXFSZ, &action, NULL);
    progress_catch_signal();
}

int main(int argc, char **argv)
{
    fill_standard_fds();
    setup_signals();
    report_setup(asks_for_json(argv), false);
    struct error e = {0};
    if (argc < 2) {
        option_usage_error(&e, "no command given");
        error_hint(&e, "see 'vmsnap --help'");
        return fail(&e, false);
    }
    const char *name = argv[1];
    if (strcmp(name, "--version") == 0) {
        puts("vmsnap " VMSNAP_VERSION);
        return finish(NULL, VMSNAP_EXIT_DONE);
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        print_help(stdout);
        return finish(NULL, VMSNAP_EXIT_DONE);
    }
    const struct command *command = find_command(name);
    if (!command) {
        option_usage_error(&e, "unknown %s '%s'", name[0] == '-' ? "option" : "command", name);
        error_hint(&e, name[0] == '-' ? "options come after the command; see 'vmsnap --help'"
                                      : "see 'vmsnap --help'");
        return fail(&e, false);
    }
    return run_command(command, argc - 1, argv + 1);
}
