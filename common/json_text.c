#include "common/json_text.h"

#include <stdarg.h>
#include <stdio.h>

json_t *json_printed(const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    json_t *made = json_string(text);
    if (made)
        return made;
    for (char *at = text; *at; at++)
        if ((unsigned char)*at >= 0x80)
            *at = '?';
    return json_string(text);
}
