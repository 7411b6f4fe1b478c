#include "restore/launch/qemu/generation_id.h"

#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/json_text.h"
#include "restore/launch/qemu/line.h"

#define DEVICE "vmgenid"

const char *generation_id_name(enum generation_id id)
{
    static const char *const names[] = {"none", "renewed", "fixed", "unknown"};
    return names[id];
}

const char *generation_id_words(enum generation_id id)
{
    switch (id) {
    case GENERATION_ID_NONE:
        return "the VM has no vmgenid: a guest can't tell that it was restored, nor that it has "
               "twins; their random numbers repeat (-device vmgenid)";
    case GENERATION_ID_RENEWED:
        return "the VM has a vmgenid, and each restore gives it a new id";
    case GENERATION_ID_FIXED:
        return "the command line names the id of the VM's vmgenid: all guests restored with it "
               "have the same one (guid=auto gives each its own)";
    case GENERATION_ID_UNKNOWN:
        break;
    }
    return "the VM has a vmgenid, but not by its command line: whether a restore gives it a new id "
           "is not known";
}

static bool has_device(const json_t *description)
{
    size_t i;
    const json_t *device;
    json_array_foreach(json_object_get(description, "devices"), i, device)
    {
        if (strcmp(json_text(device, "type", ""), DEVICE) == 0)
            return true;
    }
    return false;
}

/* One -device: NONE when it is another. */
static enum generation_id of_device(const char *value)
{
    enum generation_id id = GENERATION_ID_NONE;
    json_t *v = qemu_value_parse(value, "driver");
    const char *driver = v ? qemu_value_string(v, "driver") : NULL;
    if (driver && strcmp(driver, DEVICE) == 0) {
        const char *guid = qemu_value_string(v, "guid");
        id = !guid || strcmp(guid, "auto") == 0 ? GENERATION_ID_RENEWED : GENERATION_ID_FIXED;
    }
    json_decref(v);
    return id;
}

static enum generation_id of_line(char *const *argv)
{
    struct qemu_line line;
    enum generation_id id = GENERATION_ID_NONE;
    if (qemu_line_parse(&line, argv))
        return id;
    for (size_t i = 0; i < line.n_options && id == GENERATION_ID_NONE; i++)
        if (line.options[i].value && qemu_option_is(&line.options[i], "device"))
            id = of_device(line.options[i].value);
    qemu_line_free(&line);
    return id;
}

/* The words that are recorded, as an argv that borrows them; NULL without. */
static char **recorded_words(const json_t *description)
{
    const json_t *words = json_object_get(json_object_get(description, "launch"), "argv");
    size_t i, n = json_array_size(words);
    const json_t *word;
    char **argv = n > 0 ? calloc(n + 1, sizeof(*argv)) : NULL;
    if (!argv)
        return NULL;
    json_array_foreach(words, i, word)
    {
        const char *text = json_string_value(word);
        argv[i] = (char *)(text ? text : "");
    }
    return argv;
}

enum generation_id generation_id_of(const json_t *description, char *const *argv)
{
    if (!has_device(description))
        return GENERATION_ID_NONE;
    CLEANUP_FREE char **recorded = argv ? NULL : recorded_words(description);
    char *const *words = argv ? argv : recorded;
    enum generation_id id = words ? of_line(words) : GENERATION_ID_NONE;
    return id == GENERATION_ID_NONE ? GENERATION_ID_UNKNOWN : id;
}

enum generation_id generation_id_compare(const json_t *recorded, const json_t *actual)
{
    const char *before = json_text(recorded, "generation_id", NULL);
    const char *now = json_text(actual, "generation_id", NULL);
    if (!before || !now)
        return generation_id_of(actual, NULL);
    return strcmp(before, now) == 0 ? GENERATION_ID_FIXED : GENERATION_ID_RENEWED;
}
