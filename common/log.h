/*
 * log.h - what goes to stderr for a person: warnings always (unless -q), explanations with -v, -vv.
 * Never called from a fault path: it may block on the terminal.
 */
#ifndef VMSNAP_COMMON_LOG_H
#define VMSNAP_COMMON_LOG_H

enum log_level {
    LOG_QUIET = -1,
    LOG_NORMAL = 0, /* warnings */
    LOG_VERBOSE = 1,
    LOG_DEBUG = 2,
};

/* Set once by main() before threads start. */
void log_set_level(int level);
int log_level(void);

/* From here on, in this process and those it forks: "process N: " stands before each text that does
 * not name that process itself. 0: no more. Before threads start. */
void log_set_process(int pid);

/* One line each, "vmsnap: " in front, newline added. A progress line on the terminal is cleared
 * first. Any thread. */
void log_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void log_info(const char *fmt, ...) __attribute__((format(printf, 1, 2)));  /* with -v */
void log_debug(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* with -vv */

#endif
