#include "common/qemu/launch_fds.h"

#include <string.h>

/* True when a key of a QEMU option holds descriptor numbers. */
static bool key_holds_fds(const char *key, size_t len)
{
    static const char *const keys[] = {"fd", "fds", "vhostfd", "vhostfds", "sockfd"};
    for (size_t i = 0; i < sizeof(keys) / sizeof(*keys); i++)
        if (strlen(keys[i]) == len && memcmp(keys[i], key, len) == 0)
            return true;
    return false;
}

/* Looks through "driver,key=value,...": commas inside a value are doubled, so that none of its
 * parts looks like a key of its own. */
static int scan_option(json_t *fds, const struct target *t, const char *option, const char *text)
{
    for (const char *at = text; *at;) {
        const char *equals = at + strcspn(at, "=,");
        int r = 0;
        if (*equals == '=' && key_holds_fds(at, (size_t)(equals - at)))
            r = launch_add_fds(fds, t, option, equals + 1);
        if (r < 0)
            return r;
        at = strchrnul(at, ',');
        while (at[0] == ',' && at[1] == ',')
            at = strchrnul(at + 2, ',');
        at += *at == ',';
    }
    return 0;
}

/* Options whose value is free text, in which "fd=" means nothing. */
static bool is_free_text(const char *option)
{
    static const char *const options[] = {"-append", "-fw_cfg", "-smbios", "-name"};
    for (size_t i = 0; i < sizeof(options) / sizeof(*options); i++)
        if (strcmp(option, options[i]) == 0)
            return true;
    return false;
}

int qemu_launch_scan(json_t *fds, const struct target *t, const char *option, const char *value)
{
    if (is_free_text(option))
        return 0;
    int r = scan_option(fds, t, option, value);
    return r < 0 ? r : launch_scan_paths(fds, t, option, value);
}
