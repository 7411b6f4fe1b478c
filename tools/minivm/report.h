/* report.h - the file of --report: one JSON object per line. */
#ifndef MINIVM_REPORT_H
#define MINIVM_REPORT_H

#include <jansson.h>
#include <stdbool.h>

/* False: errno. Without it report_line() does nothing. */
bool report_open(const char *path);

/* Adds "type" and "monotonic_ns" to `line`, which is taken over. */
void report_line(const char *type, json_t *line);

#endif
