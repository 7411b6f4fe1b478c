/* json_text.h - texts and numbers out of JSON that may hold anything. */
#ifndef VMSNAP_COMMON_JSON_TEXT_H
#define VMSNAP_COMMON_JSON_TEXT_H

#include <jansson.h>
#include <stdint.h>

/* A text member of an object, or `otherwise` when it is missing, empty or no text. Borrowed. */
static inline const char *json_text(const json_t *object, const char *key, const char *otherwise)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text && *text ? text : otherwise;
}

/* A number of things, or 0 where the member is missing, negative or no integer. */
static inline uint64_t json_count(const json_t *object, const char *key)
{
    json_int_t n = json_integer_value(json_object_get(object, key));
    return n > 0 ? (uint64_t)n : 0;
}

/* A text as printf() makes it, of 1023 bytes at most. Where it is not UTF-8, which JSON's must be
 * (a path may hold any byte), its bytes beyond ASCII become '?'. NULL: no memory. */
json_t *json_printed(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
