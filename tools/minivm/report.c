/* report.c - see report.h. */
#include "report.h"

#include <stdio.h>

#include "vm.h"

static FILE *file;

bool report_open(const char *path)
{
    file = fopen(path, "ae");
    return file != NULL;
}

void report_line(const char *type, json_t *line)
{
    json_t *all = json_pack("{s:s,s:I}", "type", type, "monotonic_ns", (json_int_t)vm_now_ns());
    json_object_update(all, line);
    json_decref(line);
    if (file) {
        json_dumpf(all, file, JSON_COMPACT);
        fputc('\n', file);
        fflush(file);
    }
    json_decref(all);
}
