/* json_text.h - texts out of JSON that may hold anything. */
#ifndef VMSNAP_COMMON_JSON_TEXT_H
#define VMSNAP_COMMON_JSON_TEXT_H

#include <jansson.h>

/* A text member of an object, or `otherwise` when it is missing, empty or no text. Borrowed. */
static inline const char *json_text(const json_t *object, const char *key, const char *otherwise)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text && *text ? text : otherwise;
}

#endif
