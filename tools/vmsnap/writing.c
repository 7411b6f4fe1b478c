#include "tools/vmsnap/writing.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "tools/vmsnap/report.h"

int writing_check_terminal(const char *file, const char *what, struct error *e)
{
    if (strcmp(file, "-") != 0 || !isatty(STDOUT_FILENO))
        return 0;
    option_usage_error(e, "%s is not written to a terminal", what);
    error_hint(e, "send stdout to a file or a pipe, or name a file instead of -");
    return -EINVAL;
}

bool writing_print_warnings(const json_t *summary)
{
    json_t *warnings = json_object_get(summary, "warnings");
    size_t i;
    json_t *text;
    json_array_foreach(warnings, i, text)
    {
        if (!report_is_json())
            log_warn("%s", json_string_value(text));
    }
    return json_array_size(warnings) > 0;
}
