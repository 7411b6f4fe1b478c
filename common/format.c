#include "common/format.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>

/* One decimal below 10, none above, except that GiB and TiB keep theirs: RAM sizes are compared. */
char *format_bytes(char *out, uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned unit = 0;
    double value = (double)bytes;
    /* 1023.95 of a unit would be printed as 1024.0. */
    while (value >= 1023.95 && unit + 1 < sizeof(units) / sizeof(units[0])) {
        value /= 1024.0;
        unit++;
    }
    int decimals = unit == 0 || (unit < 3 && value >= 9.95) ? 0 : 1;
    snprintf(out, FORMAT_MAX, "%.*f %s", decimals, value, units[unit]);
    return out;
}

char *format_duration(char *out, uint64_t ns)
{
    if (ns < 999500u) {
        snprintf(out, FORMAT_MAX, "%" PRIu64 " us", (ns + 500u) / 1000u);
    } else if (ns < 99950000u) {
        snprintf(out, FORMAT_MAX, "%.1f ms", (double)ns / 1e6);
    } else if (ns < 999500000u) {
        snprintf(out, FORMAT_MAX, "%.0f ms", (double)ns / 1e6);
    } else if (ns < 119950000000u) {
        snprintf(out, FORMAT_MAX, "%.1f s", (double)ns / 1e9);
    } else {
        uint64_t s = ns / 1000000000u + (ns % 1000000000u >= 500000000u);
        snprintf(out, FORMAT_MAX, "%" PRIu64 " min %02" PRIu64 " s", s / 60, s % 60);
    }
    return out;
}

char *format_instant(char *out, uint64_t real_ns)
{
    time_t seconds = (time_t)(real_ns / 1000000000u);
    struct tm tm;
    char date[FORMAT_MAX - 8];
    if (!gmtime_r(&seconds, &tm) || !strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", &tm))
        snprintf(date, sizeof(date), "unknown");
    snprintf(out, FORMAT_MAX, "%s.%03uZ", date, (unsigned)(real_ns / 1000000u % 1000u));
    return out;
}
